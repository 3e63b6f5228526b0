// Every kernel, as one module.
#include "columns.cu"
#include "pointwise.cu"
