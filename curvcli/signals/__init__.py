"""What flows through a model: values forward and gradients backward, place by place."""
