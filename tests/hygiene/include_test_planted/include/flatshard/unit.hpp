// SPDX-License-Identifier: Apache-2.0
// Breaks the include rules on purpose.
#include <cuda_runtime.h>
void f(cudaStream_t);
