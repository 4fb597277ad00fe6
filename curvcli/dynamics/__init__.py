"""What an optimizer's steps do to a quadratic: torch's update forms as linear iterations."""
