// Which fault of faults.py the kernels are to have.
#pragma once

namespace simt {

// The engine, which has no sanitizer, reads CMIMTL_PLANTED_FAULT into it as it is loaded; 0 is no fault. To read what is
// const is no access that a sanitizer looks at, and the compiler may do it once for a loop.
extern const int awake;

inline bool planted(int fault) { return fault == awake; }

}  // namespace simt
