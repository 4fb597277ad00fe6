"""What every test runs under: one thread each, since as many tests run as there are cores."""

import torch

torch.set_num_threads(1)
