// soft_topk on CPUs, built on demand by cpp_backend.py. The tests compare every function with reference.py.

#include "cpp_group_sum.h"
#include "cpp_tournament.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("tournament", &tournament);
  module.def("tournament_backward", &tournament_backward);
  module.def("group_sum", &group_sum);
  module.def("group_sum_backward", &group_sum_backward);
  module.def("release", [] { Blocks::all().release(); });
}
