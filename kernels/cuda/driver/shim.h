// The loader of the driver library, see doc.go.
#ifndef DENOISED_SHIM_H
#define DENOISED_SHIM_H

#include "cuda.h"

// What cushim_open found.
enum { CUSHIM_OPENED, CUSHIM_ABSENT, CUSHIM_BROKEN };

// cushim_open loads the driver library and fills the table of the trampolines. If
// there is none, or it does not load, *why says so; it is valid as long as the
// program runs. To be called once, before any other function.
int cushim_open(const char **why);

// cushim_lacking is the name of a function that package driver calls and the
// library lacks, NULL if it has them all.
const char *cushim_lacking(void);

// cushim_init is the library's cuInit.
CUresult cushim_init(void);

#endif
