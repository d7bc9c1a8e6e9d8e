"""The PyTorch back end: trains a Hugging Face model's memory, on CUDA or a CPU, in one
or several processes; the result is for ``convert --torch-path``."""
