// Which fault of faults.py the kernels are to have.
#pragma once

namespace simt {

// Is it this one? The engine reads CMIMTL_PLANTED_FAULT as it is loaded; without it no fault is awake. It is compiled
// without sanitizers, so the question is no access of the kernel's.
bool planted(int fault);

}  // namespace simt
