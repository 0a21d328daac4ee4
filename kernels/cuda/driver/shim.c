//go:build cuda && linux

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "names.h"
#include "shim.h"

static CUresult missing(void) {
	return CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND;
}

// Where the trampolines jump to, in the order of cushim_names.
__attribute__((visibility("hidden"))) void *cushim_table[CUSHIM_SYMBOLS] = {
	[0 ... CUSHIM_SYMBOLS - 1] = (void *)missing,
};

static CUresult (*init)(unsigned int) = NULL;

// The init function of gorgonia.org/cu calls cuInit when the program starts and ends the
// program if that fails. So this one does nothing and is always content: the driver
// is loaded when somebody asks for it.
CUresult cuInit(unsigned int flags) {
	(void)flags;
	return CUDA_SUCCESS;
}

// The places where a driver's library is when the dynamic linker does not know of it.
static const char *const places[] = {
	"/usr/lib64/libcuda.so.1",
	"/usr/lib/x86_64-linux-gnu/libcuda.so.1",
	"/usr/lib/aarch64-linux-gnu/libcuda.so.1",
	"/usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.1",
	"/usr/local/nvidia/lib64/libcuda.so.1", // containers of Kubernetes
	"/run/opengl-driver/lib/libcuda.so.1",  // NixOS
	"/usr/lib/wsl/lib/libcuda.so.1",        // Windows' subsystem for Linux
};

static void *open_library(int *found, const char **why) {
	const char *soname = "libcuda.so.1";
#ifdef CUSHIM_OVERRIDE
	const char *other = getenv("DENOISED_CUDA_LIB");
	if (other && *other) {
		void *library = dlopen(other, RTLD_NOW | RTLD_LOCAL);
		if (!library) {
			*found = access(other, F_OK) == 0;
			*why = strdup(dlerror());
		}
		return library;
	}
#endif
	void *library = dlopen(soname, RTLD_NOW | RTLD_LOCAL);
	if (library)
		return library;
	*why = strdup(dlerror());
	// The message begins with the name of the file that is missing, which may
	// be one that the library needs.
	*found = strncmp(*why, "libcuda.so.1: cannot open", strlen("libcuda.so.1: cannot open")) != 0;
	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		if (access(places[i], F_OK) != 0)
			continue;
		library = dlopen(places[i], RTLD_NOW | RTLD_LOCAL);
		if (library)
			return library;
		if (!*found) {
			*found = 1;
			*why = strdup(dlerror());
		}
	}
	return NULL;
}

int cushim_open(const char **why) {
	int found = 0;
	void *library = open_library(&found, why);
	if (!library)
		return found ? CUSHIM_BROKEN : CUSHIM_ABSENT;
	init = (CUresult(*)(unsigned int))dlsym(library, "cuInit");
	for (int i = 0; i < CUSHIM_SYMBOLS; i++) {
		void *symbol = dlsym(library, cushim_names[i]);
		if (symbol)
			cushim_table[i] = symbol;
	}
	return CUSHIM_OPENED;
}

const char *cushim_lacking(void) {
	if (!init)
		return "cuInit";
	for (int i = 0; i < CUSHIM_NEEDED; i++)
		if (cushim_table[i] == (void *)missing)
			return cushim_names[i];
	return NULL;
}

CUresult cushim_init(void) {
	return init(0);
}
