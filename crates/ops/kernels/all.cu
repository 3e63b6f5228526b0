// Every kernel, as one module.
#include "attention.cu"
#include "columns.cu"
#include "pointwise.cu"
