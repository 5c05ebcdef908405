"""`python -m transpooler.model.ops.soft_topk`: compile the C++ kernels now, rather than when they are first used."""

from transpooler.model.ops.soft_topk.cpp_backend import extension

module = extension()
print(module.__file__ if module else "no C++ kernels; plain torch serves")
