// dk.h is the one header that kernels include: the few things that CUDA C++ takes from NVIDIA's
// headers, and the instructions that have no C++ spelling. It has two forms: inline PTX for a device
// compile by clang without NVIDIA's headers (-nocudainc -nocudalib), and, with DK_EMU defined, plain
// C++ that runs on the host (emu/emu.h).
//
// A kernel is written as
//
//	KERNEL(name)(const f16 *x, float *y, int n) { … }
//
// and its parameters are pointers, int, unsigned and float only, so that a launch is a list of
// 8-byte slots. Products and sums are never contracted (-ffp-contract=off, with which PTX says so to the
// driver's compiler, too): a fused multiply-add is written dk_fma. So what two kernels compute by the
// same expression has the same bits.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef __SIZE_TYPE__ size_t;

// f16 holds the bits of an IEEE half. Arithmetic is in float: dk_h2f, dk_f2h.
typedef u16 f16;

// What one access of 8 or 16 bytes moves.
struct alignas(8) u32x2 {
	u32 x, y;
};
struct alignas(16) u32x4 {
	u32 x, y, z, w;
};
struct alignas(16) f32x4 {
	float x, y, z, w;
};

#ifdef DK_EMU
#include "emu/emu.h"
#else

#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#include <__clang_cuda_builtin_vars.h>

#define DEV static __device__ __forceinline__
#define METHOD __device__ __forceinline__
#define KERNEL(name) extern "C" __global__ void name
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("nounroll")

// SHARED(float, tile, [18][18]) declares static shared memory, aligned for 16-byte accesses. A
// kernel has at most 48 KB of it.
#define SHARED(type, name, dims) alignas(16) __shared__ type name dims

// DYNAMIC_SHARED(f16, tile) declares a pointer to the shared memory that the launch asked for.
extern __shared__ u32x4 dk_dynamic[];
#define DYNAMIC_SHARED(type, name) type *const name = reinterpret_cast<type *>(dk_dynamic)

#ifdef __CUDA_ARCH__
#define DK_ARCH __CUDA_ARCH__
#else
#define DK_ARCH 0
#endif

// dk_syncwarp makes what the lanes of a warp have written to shared memory visible to each other.
DEV void dk_syncwarp() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }

DEV float dk_h2f(f16 h) {
	float f;
	asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
	return f;
}

// dk_f2h rounds to nearest, ties to even; what is too large becomes an infinity.
DEV f16 dk_f2h(float f) {
	f16 h;
	asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
	return h;
}

// dk_pack rounds two numbers to halves, lo in the low 16 bits.
DEV u32 dk_pack(float lo, float hi) {
#if DK_ARCH >= 800
	u32 r;
	asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
	return r;
#else
	return (u32)dk_f2h(lo) | (u32)dk_f2h(hi) << 16;
#endif
}

DEV float dk_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEV float dk_sqrt(float x) {
	float r;
	asm("sqrt.rn.f32 %0, %1;" : "=f"(r) : "f"(x));
	return r;
}
DEV double dk_sqrt(double x) {
	double r;
	asm("sqrt.rn.f64 %0, %1;" : "=d"(r) : "d"(x));
	return r;
}
DEV float dk_abs(float x) { return __builtin_fabsf(x); }

// dk_shfl_xor returns v of the lane whose number differs in the bits of mask.
DEV float dk_shfl_xor(float v, int mask) {
	float r;
	asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=f"(r) : "f"(v), "r"(mask));
	return r;
}

// dk_mma_m16n8k16 adds the product of the halves a [16, 16] and b [16, 8] to d [16, 8]. With
// g = lane/4 and q = lane%4, a lane holds, lower address in the lower half of a register:
//
//	a[0] row g   columns 2q, 2q+1     b[0] rows 2q, 2q+1    column g     d[0], d[1] row g   columns 2q, 2q+1
//	a[1] row g+8 columns 2q, 2q+1     b[1] rows 2q+8, 2q+9  column g     d[2], d[3] row g+8 columns 2q, 2q+1
//	a[2] row g   columns 2q+8, 2q+9
//	a[3] row g+8 columns 2q+8, 2q+9
DEV void dk_mma_m16n8k16(float *d, const u32 *a, const u32 *b) {
#if DK_ARCH >= 800
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
		: "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
		: "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else // Turing has half of it, with the same registers.
	asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
		: "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]));
	asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
		: "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

// dk_shared_address is the address of p within shared memory, as instructions take it.
DEV u32 dk_shared_address(const void *p) {
	u32 a;
	asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(a) : "l"(p));
	return a;
}

// dk_ldmatrix_x4 loads four 8×8 matrices of halves from shared memory. Lane l gives the address of
// row l%8, 16 bytes, of matrix l/8, and gets of matrix i, in r[i], row l/4, columns 2(l%4) and
// 2(l%4)+1.
DEV void dk_ldmatrix_x4(u32 *r, const void *row) {
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
		: "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(dk_shared_address(row)) : "memory");
}

// dk_ldmatrix_x4_trans is dk_ldmatrix_x4 of the transposed matrices: rows 2(l%4) and 2(l%4)+1,
// column l/4.
DEV void dk_ldmatrix_x4_trans(u32 *r, const void *row) {
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
		: "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(dk_shared_address(row)) : "memory");
}

// dk_cp_async16 copies 16 bytes from global to shared memory, or writes zeros there and reads
// nothing if inside is false. Both addresses are multiples of 16. The copy is complete for the
// thread that asked for it after a dk_cp_async_wait, and for others after a barrier that follows.
// (Turing copies at once.)
DEV void dk_cp_async16(void *dst, const void *src, bool inside) {
#if DK_ARCH >= 800
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
		:: "r"(dk_shared_address(dst)), "l"(src), "r"(inside ? 16 : 0) : "memory");
#else
	if (inside)
		*(u32x4 *)dst = *(const u32x4 *)src;
	else
		*(u32x4 *)dst = {0, 0, 0, 0};
#endif
}

// dk_cp_async_commit closes a group of copies: those since the commit before.
DEV void dk_cp_async_commit() {
#if DK_ARCH >= 800
	asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// dk_cp_async_wait waits until at most newest groups, the last ones, are under way.
template <int newest> DEV void dk_cp_async_wait() {
#if DK_ARCH >= 800
	asm volatile("cp.async.wait_group %0;" :: "n"(newest) : "memory");
#endif
}

#endif // DK_EMU

DEV int dk_min(int a, int b) { return a < b ? a : b; }

// dk_lo and dk_hi are the halves of a register.
DEV float dk_lo(u32 v) { return dk_h2f((f16)v); }
DEV float dk_hi(u32 v) { return dk_h2f((f16)(v >> 16)); }
