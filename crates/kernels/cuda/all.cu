// Every kernel, as one module.
#include "adamw.cu"
#include "attention.cu"
#include "columns.cu"
#include "flash_attention.cu"
#include "loss.cu"
#include "normalization.cu"
#include "pointwise.cu"
#include "rows.cu"
