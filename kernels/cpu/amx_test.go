//go:build amd64 && !purego && !race

package cpu

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/cpu"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// The AMX kernels have only few kinds of instructions, so that the machine code
// that the linker has put into this program can be run where there is no AMX: the
// tests below hold it to the same list as every other instruction set. Under the race
// detector that would take minutes, and nothing in it is concurrent.

// machine runs machine code by the Intel SDM: volume 2 for the instructions, chapter
// 18 of volume 1 for the tiles. What it does not know, and any access beyond the
// memory that it was given, is an error.
type machine struct {
	registers [16]uint64
	zero      bool // the flags
	carry     bool
	memory    []memory
	vectors   [16][32]byte
	tiles     [8]tile
	ready     bool // tiles are configured
}

// memory is some of the program's.
type memory struct {
	at       uint64
	bytes    []byte
	writable bool
}

type tile struct {
	rows, bytes int
	data        [16][64]byte
}

const stackPointer = 4

// give lets the machine use n bytes from p on.
func give[T any](m *machine, p *T, n int, writable bool) {
	m.memory = append(m.memory, memory{uint64(uintptr(unsafe.Pointer(p))), unsafe.Slice((*byte)(unsafe.Pointer(p)), n), writable})
}

func (m *machine) at(address uint64, n int, write bool) ([]byte, error) {
	for _, p := range m.memory {
		if o := address - p.at; address >= p.at && o <= uint64(len(p.bytes)) && uint64(n) <= uint64(len(p.bytes))-o && (p.writable || !write) {
			return p.bytes[o:][:n], nil
		}
	}
	return nil, fmt.Errorf("%d bytes at %#x are not the kernel's (write: %v)", n, address, write)
}

// operand is what a ModRM byte and its followers say.
type operand struct {
	reg, rm int
	direct  bool // rm is a register
	address uint64
	index   uint64 // value of the index register, the stride of a tile
	indexed bool
	length  int // of the code that was read
}

// modRM decodes code from the ModRM byte on; r, x and b extend the registers.
func (m *machine) modRM(code []byte, r, x, b int) operand {
	mode, reg, rm := code[0]>>6, int(code[0]>>3&7), int(code[0]&7)
	o := operand{reg: reg | r<<3, rm: rm | b<<3, direct: mode == 3, length: 1}
	if o.direct {
		return o
	}
	if rm == 4 {
		sib := code[1]
		o.length++
		if index := int(sib>>3&7) | x<<3; index != 4 {
			o.index, o.indexed = m.registers[index], true
		}
		o.address = m.registers[int(sib&7)|b<<3] + o.index<<(sib>>6)
		rm = int(sib & 7)
	} else {
		o.address = m.registers[o.rm]
	}
	switch {
	case mode == 1:
		o.address += uint64(int8(code[o.length]))
		o.length++
	case mode == 2:
		o.address += uint64(int32(binary.LittleEndian.Uint32(code[o.length:])))
		o.length += 4
	case rm == 5:
		panic("address without base")
	}
	return o
}

// run runs code until it returns.
func (m *machine) run(code []byte) error {
	at := 0
	for range 100_000_000 {
		if at < 0 || at >= len(code) {
			return fmt.Errorf("jump to %d of %d bytes", at, len(code))
		}
		next, err := m.step(code[at:])
		if err != nil {
			return fmt.Errorf("at %d (% x): %w", at, code[at:][:8], err)
		}
		if next == 0 {
			if m.ready {
				return fmt.Errorf("the tiles were not released")
			}
			return nil
		}
		at += next
	}
	return fmt.Errorf("does not end")
}

// step runs one instruction and returns how far the next one is; 0 after RET.
func (m *machine) step(code []byte) (int, error) {
	switch {
	case code[0] == 0xc4 && code[1]&31 == 2 && code[2]&4 == 0: // 128 bits are those of AMX
		return m.vex(code)
	case code[0] == 0xc4 || code[0] == 0xc5:
		return m.vector(code)
	}
	n, r, x, b, wide := 0, 0, 0, 0, false
	if code[0]&0xf0 == 0x40 {
		wide, r, x, b = code[0]&8 != 0, int(code[0]>>2&1), int(code[0]>>1&1), int(code[0]&1)
		n++
	}
	op := code[n]
	n++
	switch {
	case op == 0xc3 && n == 1: // RET
		return 0, nil
	case op == 0x75 || op == 0x74 || op == 0x72 || op == 0xeb: // JNZ, JZ, JB, JMP
		n++
		if m.jumps(op & 15) {
			n += int(int8(code[n-1]))
		}
		return n, nil
	case op == 0x0f && (code[n] == 0x85 || code[n] == 0x84 || code[n] == 0x82):
		n += 5
		if m.jumps(code[n-5] & 15) {
			n += int(int32(binary.LittleEndian.Uint32(code[n-4:])))
		}
		return n, nil
	case op == 0xe9:
		return n + 4 + int(int32(binary.LittleEndian.Uint32(code[n:]))), nil
	case op >= 0xb8 && op <= 0xbf && !wide: // MOV of a number without sign
		m.registers[int(op&7)|b<<3] = uint64(binary.LittleEndian.Uint32(code[n:]))
		return n + 4, nil
	}
	o := m.modRM(code[n:], r, x, b)
	n += o.length
	if op == 0x31 && o.direct && o.reg == o.rm { // XOR that clears, of 32 or 64 bits
		m.registers[o.rm], m.zero = 0, true
		return n, nil
	}
	if !wide {
		return 0, fmt.Errorf("instruction of less than 64 bits")
	}
	to := &m.registers[o.rm]
	switch {
	case op == 0x8d && !o.direct: // LEA
		m.registers[o.reg] = o.address
		return n, nil
	case op == 0x85 && o.direct: // TEST
		m.zero, m.carry = *to&m.registers[o.reg] == 0, false
		return n, nil
	case (op == 0x83) && o.direct && o.reg&7 == 7: // CMP with a number
		v := uint64(int8(code[n]))
		m.zero, m.carry = *to == v, *to < v
		return n + 1, nil
	case op == 0x8b && !o.direct: // MOV from memory
		v, err := m.at(o.address, 8, false)
		if err != nil {
			return 0, err
		}
		m.registers[o.reg] = binary.LittleEndian.Uint64(v)
		return n, nil
	case !o.direct:
		return 0, fmt.Errorf("arithmetic in memory")
	case op == 0x89: // MOV
		*to = m.registers[o.reg]
		return n, nil
	case op == 0xc7 && o.reg&7 == 0: // MOV of a number
		*to = uint64(int32(binary.LittleEndian.Uint32(code[n:])))
		return n + 4, nil
	case op == 0x01: // ADD
		*to += m.registers[o.reg]
	case op == 0x83 && o.reg&7 == 0: // ADD of a number
		*to += uint64(int8(code[n]))
		n++
	case op == 0x83 && o.reg&7 == 5: // SUB of a number
		*to -= uint64(int8(code[n]))
		n++
	case op == 0x81 && o.reg&7 == 0:
		*to += uint64(int32(binary.LittleEndian.Uint32(code[n:])))
		n += 4
	case op == 0xc1 && o.reg&7 == 4: // SHL
		*to <<= code[n] & 63
		n++
	case op == 0xff && o.reg&7 == 1: // DEC
		*to--
	default:
		return 0, fmt.Errorf("unknown instruction")
	}
	m.zero = *to == 0
	return n, nil
}

// jumps tells whether a jump with this condition is one.
func (m *machine) jumps(condition byte) bool {
	switch condition {
	case 2:
		return m.carry
	case 4:
		return m.zero
	case 5:
		return !m.zero
	}
	return true
}

// vector runs one of the instructions on whole registers of 256 bits that AVX-VNNI
// needs (SDM volume 2, section 2.3).
func (m *machine) vector(code []byte) (int, error) {
	r, x, b, table, last, n := int(^code[1]>>7), 0, 0, byte(1), code[1], 2
	if code[0] == 0xc4 {
		x, b, table, last, n = int(^code[1]>>6&1), int(^code[1]>>5&1), code[1]&31, code[2], 3
		if last&0x80 != 0 {
			return 0, fmt.Errorf("W")
		}
	}
	r &= 1
	v, long, kind := int(^last>>3&15), last&4 != 0, [3]byte{table, last & 3, code[n]}
	n++
	if kind == [3]byte{1, 0, 0x77} && !long && v == 0 { // VZEROUPPER
		for i := range m.vectors {
			clear(m.vectors[i][16:])
		}
		return n, nil
	}
	if !long {
		return 0, fmt.Errorf("vector of 128 bits")
	}
	o := m.modRM(code[n:], r, x, b)
	n += o.length
	to := &m.vectors[o.reg]
	switch {
	case kind == [3]byte{1, 2, 0x6f} && !o.direct && v == 0: // VMOVDQU
		from, err := m.at(o.address, 32, false)
		if err != nil {
			return 0, err
		}
		copy(to[:], from)
	case kind == [3]byte{1, 2, 0x7f} && !o.direct && v == 0:
		mem, err := m.at(o.address, 32, true)
		if err != nil {
			return 0, err
		}
		copy(mem, to[:])
	case kind == [3]byte{1, 1, 0x7f} && o.direct && v == 0: // VMOVDQA
		m.vectors[o.rm] = *to
	case kind == [3]byte{2, 1, 0x58} && !o.direct && v == 0: // VPBROADCASTD
		from, err := m.at(o.address, 4, false)
		if err != nil {
			return 0, err
		}
		for i := range 8 {
			copy(to[4*i:], from)
		}
	case kind == [3]byte{2, 1, 0x50} && o.direct: // VPDPBUSD
		for i := range 8 {
			sum := binary.LittleEndian.Uint32(to[4*i:])
			for k := 4 * i; k < 4*i+4; k++ {
				sum += uint32(int32(m.vectors[v][k]) * int32(int8(m.vectors[o.rm][k])))
			}
			binary.LittleEndian.PutUint32(to[4*i:], sum)
		}
	default:
		return 0, fmt.Errorf("unknown instruction on vectors")
	}
	return n, nil
}

// vex runs an instruction of AMX.
func (m *machine) vex(code []byte) (int, error) {
	r, x, b := int(^code[1]>>7&1), int(^code[1]>>6&1), int(^code[1]>>5&1)
	v, prefix, op := int(^code[2]>>3&15), code[2]&3, code[3]
	if code[1]&31 != 2 || code[2]&0x84 != 0 {
		return 0, fmt.Errorf("opcode map, W or length")
	}
	o := m.modRM(code[4:], r, x, b)
	n := 4 + o.length
	kind := [2]byte{prefix, op}
	if o.indexed && code[5]>>6 != 0 {
		return 0, fmt.Errorf("stride is scaled")
	}
	const none, f3, f2 = 0, 2, 3
	if kind == [2]byte{none, 0x49} && !o.direct && o.reg == 0 && v == 0 {
		return n, m.configure(o.address)
	}
	if !m.ready {
		return 0, fmt.Errorf("tiles are not configured")
	}
	if kind == [2]byte{none, 0x49} && code[4] == 0xc0 && v == 0 { // TILERELEASE
		m.tiles, m.ready = [8]tile{}, false
		return n, nil
	}
	if o.reg > 7 || m.tiles[o.reg].rows == 0 {
		return 0, fmt.Errorf("tile %d is not configured", o.reg)
	}
	t := &m.tiles[o.reg]
	switch {
	case kind == [2]byte{f2, 0x49} && o.direct && o.rm == 0 && v == 0: // TILEZERO
		t.data = [16][64]byte{}
	case kind == [2]byte{f2, 0x4b} && o.indexed && v == 0: // TILELOADD
		t.data = [16][64]byte{}
		for row := range t.rows {
			from, err := m.at(o.address+uint64(row-1)*o.index, t.bytes, false)
			if err != nil {
				return 0, fmt.Errorf("row %d of tile %d: %w", row, o.reg, err)
			}
			copy(t.data[row][:], from)
		}
	case kind == [2]byte{f3, 0x4b} && o.indexed && v == 0: // TILESTORED
		for row := range t.rows {
			to, err := m.at(o.address+uint64(row-1)*o.index, t.bytes, true)
			if err != nil {
				return 0, fmt.Errorf("row %d of tile %d: %w", row, o.reg, err)
			}
			copy(to, t.data[row][:])
		}
	case kind == [2]byte{f3, 0x5c} && o.direct && o.rm < 8 && v < 8: // TDPBF16PS
		return n, t.dot(&m.tiles[o.rm], &m.tiles[v])
	default:
		return 0, fmt.Errorf("unknown instruction")
	}
	return n, nil
}

// configure is LDTILECFG.
func (m *machine) configure(address uint64) error {
	c, err := m.at(address, 64, false)
	if err != nil {
		return err
	}
	m.tiles, m.ready = [8]tile{}, true
	if c[0] != 1 || c[1] != 0 {
		return fmt.Errorf("palette %d, start row %d", c[0], c[1])
	}
	for i, v := range c {
		if v != 0 && i > 1 && (i < 16 || i >= 32 && i < 48 || i >= 56) {
			return fmt.Errorf("reserved byte %d of the configuration is %d", i, v)
		}
	}
	for i := range m.tiles {
		t := &m.tiles[i]
		t.rows, t.bytes = int(c[48+i]), int(binary.LittleEndian.Uint16(c[16+2*i:]))
		if t.rows > 16 || t.bytes > 64 || (t.rows == 0) != (t.bytes == 0) {
			return fmt.Errorf("tile %d has %d rows of %d bytes", i, t.rows, t.bytes)
		}
	}
	return nil
}

// dot is TDPBF16PS: t += a·b.
func (t *tile) dot(a, b *tile) error {
	if t == a || t == b || a == b || t.rows != a.rows || a.bytes != 4*b.rows || t.bytes != b.bytes || a.rows == 0 || t.bytes%4 != 0 {
		return fmt.Errorf("tiles of %d×%d, %d×%d and %d×%d cannot be multiplied", t.rows, t.bytes, a.rows, a.bytes, b.rows, b.bytes)
	}
	for row := range t.rows {
		var even, odd [16]float32
		for k := range b.rows {
			x0, x1 := bf16At(a.data[row][4*k:]), bf16At(a.data[row][4*k+2:])
			for c := range t.bytes / 4 {
				even[c] += x0 * bf16At(b.data[k][4*c:])
				odd[c] += x1 * bf16At(b.data[k][4*c+2:])
			}
		}
		for c := range t.bytes / 4 {
			at := t.data[row][4*c:]
			v := math.Float32frombits(binary.LittleEndian.Uint32(at)) + (even[c] + odd[c])
			binary.LittleEndian.PutUint32(at, math.Float32bits(v))
		}
	}
	return nil
}

func bf16At(b []byte) float32 {
	return math.Float32frombits(uint32(b[0])<<16 | uint32(b[1])<<24)
}

// call runs a kernel with its arguments, pointers and numbers of 8 bytes each.
func (m *machine) call(code []byte, arguments ...uint64) error {
	stack := append(make([]uint64, 1), arguments...) // a return address
	give(m, &stack[0], 8*len(stack), false)
	m.registers[stackPointer] = uint64(uintptr(unsafe.Pointer(&stack[0])))
	return m.run(code)
}

func address[T any](p *T) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }

// interpreted returns kernels that run the code of the AMX kernels, by outputs and
// pixels, within exactly the memory that their contract names.
func interpreted() (list [4]tileKernel) {
	var starts [4]*byte
	tileCode(&starts)
	for k, start := range starts {
		code := unsafe.Slice(start, 1024) // RET is well before that
		outputs, pixels := 16*(k/2+1), 16*(k%2+1)
		list[k] = func(config *[64]byte, x *[3]*uint32, w *uint32, sums *float32, tiles, rows, chunks, chunk, xs uintptr) {
			m := new(machine)
			give(m, config, len(config), false)
			give(m, x, 8*int(rows), false)
			n := int(config[48])
			if pixels > 16 {
				n += int(config[48+2])
			}
			n += int(tiles-1) * pixels
			for _, p := range x[:rows] {
				give(m, p, (n-1)*int(xs)+int(chunks*chunk), false)
			}
			give(m, w, int(rows*chunks*chunk)*outputs, false)
			give(m, sums, 4*n*outputs, true)

			if err := m.call(code, address(config), address(x), address(w), address(sums), uint64(tiles),
				uint64(rows), uint64(chunks), uint64(chunk), uint64(xs)); err != nil {
				panic(fmt.Errorf("AMX kernel of %d outputs and %d pixels: %w", outputs, pixels, err))
			}
		}
	}
	return list
}

// interpretedAMX is the backend of AMX with its kernels interpreted. Where the
// machine lacks what else the set uses, plain Go does that.
func interpretedAMX() *Backend {
	k := interpreted()
	s := amx(k[0], k[1], k[2], k[3])
	if !cpu.X86.HasAVX512F || !cpu.X86.HasAVX512BF16 {
		s.bf16 = &bf16{row: roundPairs, weights: pairWeights}
		for i, kernels := range [][2]tileKernel{{k[2], k[3]}, {k[0], k[1]}} {
			width := s.blocks[i].width
			s.blocks[i].run = tileBlock(width, kernels[0], kernels[1], finishGo(width))
			s.blocks[i].grad = func(g *gradRows) {
				for o := 0; o < width; o += goBlock {
					one := *g
					one.dw, one.dy = g.dw[o:], g.dy[o:]
					gradRowsGo(&one)
				}
			}
		}
	}
	return &Backend{s}
}

// finishGo is finishRow16 or finishRow32 in plain Go.
func finishGo(width int) finishKernel {
	return func(y, res, sums, bias *float32, n, ys uintptr, floor, slope float32) {
		stride := int(ys / 4)
		length := (int(n)-1)*stride + width
		r := row{y: unsafe.Slice(y, length), ys: stride, floor: floor, slope: slope}
		if res != nil {
			r.res = unsafe.Slice(res, length)
		}
		s, b := unsafe.Slice(sums, int(n)*width), unsafe.Slice(bias, width)
		for p := range int(n) {
			z := make([]float32, width)
			for o := range z {
				z[o] = s[p*width+o] + b[o]
			}
			r.storeGo(p, z...)
		}
	}
}

// TestAMX runs the whole list on the machine code of the AMX kernels.
func TestAMX(t *testing.T) {
	b := interpretedAMX()
	t.Run("Backend", func(t *testing.T) { kernelstest.Run(t, b, kernelstest.BF16) })
	t.Run("Graphs", func(t *testing.T) { kernelstest.RunGraphs(t, b, kernelstest.BF16) })
	t.Run("RowGuards", func(t *testing.T) { testRowGuards(t, b) })
	t.Run("Strips", func(t *testing.T) { testStrips(t, b) })
}

// TestAMXAgrees: the kernels multiply the same rounded numbers as a sum in float64,
// so nothing is left but the order and rounding of sums.
func TestAMXAgrees(t *testing.T) {
	b := interpretedAMX()
	for _, c := range [][3]int{{5, 16, 7}, {32, 32, 33}, {48, 32, 40}, {36, 20, 161}, {1, 64, 15}} {
		net := kernelstest.RandomNet(uint64(c[0]), c[0], 0)
		conv := net.Layers[1].Conv // c[0] inputs
		conv.Out = c[1]
		conv.Weights, conv.Bias = randoms(1, c[1]*c[0]*9), randoms(2, c[1])
		height, width := 4, c[2]
		src := randoms(3, height*width*c[0])
		got := make([]float32, height*width*c[1])
		if err := b.Conv3x3(got, src, nil, height, width, &conv); err != nil {
			t.Fatal(err)
		}
		rounded := kernels.Conv{In: conv.In, Out: conv.Out, Weights: roundedFloats(conv.Weights), Bias: conv.Bias, ReLU: conv.ReLU}
		want := kernelstest.Reference(roundedFloats(src), nil, height, width, &rounded)
		if e := kernelstest.RelativeError(got, want); !(e <= 1e-6) {
			t.Errorf("%d to %d channels: off by %.3g", c[0], c[1], e)
		}
	}
}

func roundedFloats(v []float32) []float32 {
	r := slices.Clone(v)
	for i, f := range v {
		r[i] = math.Float32frombits(roundBF16(f) << 16)
	}
	return r
}

// TestMachine: the interpreter refuses what it should, so that its silence says
// something.
func TestMachine(t *testing.T) {
	kernel := interpreted()[3]
	call := func(change func(s *tileScratch, x *[3]*uint32)) (failed bool) {
		defer func() { failed = recover() != nil }()
		s := new(tileScratch)
		s.configure(32, 16, 16)
		in, w, sums := make([]uint32, 32*16), make([]uint32, 16*32), make([]float32, 32*32)
		x := &[3]*uint32{&in[0]}
		change(s, x)
		kernel(&s.config, x, &w[0], &sums[0], 1, 1, 1, 64, 64)
		return false
	}
	if call(func(*tileScratch, *[3]*uint32) {}) {
		t.Error("a good call fails")
	}
	for name, change := range map[string]func(s *tileScratch, x *[3]*uint32){
		"palette":      func(s *tileScratch, _ *[3]*uint32) { s.config[0] = 2 },
		"no such tile": func(s *tileScratch, _ *[3]*uint32) { s.configure(32, 16, 0) },
		"shapes":       func(s *tileScratch, _ *[3]*uint32) { s.config[48+6] = 8 },
		"too wide":     func(s *tileScratch, _ *[3]*uint32) { s.config[16+8] = 68 },
		"reserved":     func(s *tileScratch, _ *[3]*uint32) { s.config[60] = 1 },
		"long rows":    func(s *tileScratch, _ *[3]*uint32) { s.configure(32, 16, 16); s.config[48+3]++ },
	} {
		if !call(change) {
			t.Errorf("%s: passed", name)
		}
	}
	for _, code := range [][]byte{
		{0x90},                         // NOP: unknown
		{0x48, 0x8b, 0x44, 0x24, 0x08}, // MOV from memory that was not given
		{0xc4, 0xe2, 0x7b, 0x49, 0xc0}, // TILEZERO without a configuration
		{0x7f, 0x00},                   // JG
		{0xc5, 0xfd, 0xef, 0xc0},       // VPXOR
		{0xc5, 0xf9, 0x7f, 0xc1},       // VMOVDQA of 128 bits
	} {
		if new(machine).run(append(code, make([]byte, 16)...)) == nil {
			t.Errorf("% x: passed", code)
		}
	}
}
