// soft_topk on CPUs, built on demand by cpu.py. The tests compare every function with reference.py.

#include "cpu_group_sum.h"
#include "cpu_tournament.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("tournament", &tournament);
  module.def("tournament_backward", &tournament_backward);
  module.def("group_sum", &group_sum);
  module.def("group_sum_backward", &group_sum_backward);
  module.def("release", [] { Blocks::all().release(); });
}
