// What a decoder does for each token on a CPU, built on demand by kernels.py. The tests compare both with plain torch.

#include "cpp_attention.h"
#include "cpp_packed_linear.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("attend_few", &attend_few);
  module.def("pack", &pack);
  module.def("packed_linear", &packed_linear);
}
