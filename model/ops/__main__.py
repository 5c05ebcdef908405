"""`python -m transpooler.model.ops`: compile the C++ kernels now, rather than when they are first used."""

from transpooler.model.ops.decoding import kernels
from transpooler.model.ops.soft_topk import cpp_backend

module = cpp_backend.extension()
print(module.__file__ if module else "no C++ kernels; plain torch serves")
try:
    print(kernels.extension().__file__)
except kernels.NoKernelsError as error:
    print(error)
