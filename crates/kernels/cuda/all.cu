// Every kernel, as one module.
#include "adamw.cu"
#include "attention.cu"
#include "columns.cu"
#include "loss.cu"
#include "normalization.cu"
#include "pointwise.cu"
#include "rows.cu"
