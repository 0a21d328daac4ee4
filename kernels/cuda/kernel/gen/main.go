// Command gen compiles the CUDA kernels of this folder to PTX and writes the Go code that
// launches them. Run it by "go generate ./kernels/cuda/kernel"; it needs clang-19. What it
// writes is committed, and "make kernels" fails when the two differ:
//
//	ptx/NAME.sm_75.ptx …   NAME.cu for each architecture
//	launch.go              a typed method for each kernel, and the exported constants
//	emu/table.inc          the kernels as the host emulation finds them
//	resources.txt          registers, spills and shared memory of each kernel on each
//	                       architecture, as ptxas reports them
//
// The last one needs ptxas as well, named by the environment variable PTXAS or found in the
// path; without it the table stays as it is, unless the PTX has changed, which is an error.
//
// A kernel is declared as KERNEL(name)(type a, type b, …); its parameters are pointers, int,
// unsigned or float. They are compared with the parameter list of the PTX, for a mistake here
// would be memory corruption at the launch and no error. A constant that launches depend on
// is a line
//
//	constexpr int Name = value; // exported: what it is
package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"go/format"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// target is an architecture that PTX is made for. The version of PTX is the oldest that has
// the instructions in use: what is newer needs a newer driver.
type target struct{ arch, ptx string }

var targets = []target{{"sm_75", "ptx65"}, {"sm_80", "ptx70"}}

// assembled are the architectures of the table of resources, each with the target that it
// runs.
var assembled = []struct{ arch, target string }{
	{"sm_75", "sm_75"}, {"sm_80", "sm_80"}, {"sm_86", "sm_80"}, {"sm_89", "sm_80"}, {"sm_90", "sm_80"},
}

type kernel struct {
	file   string // without .cu
	name   string
	params []param
}

type param struct {
	name, c string
	kind    *kind
}

// kind is a type of parameter: in PTX, in Go, and how Go makes its 8 bytes.
type kind struct{ ptx, goType, slot string }

var (
	pointer  = &kind{"u64", "driver.Ptr", "uint64(%s)"}
	signed   = &kind{"u32", "int", "uint64(uint32(int32(%s)))"}
	unsigned = &kind{"u32", "uint32", "uint64(%s)"}
	single   = &kind{"f32", "float32", "uint64(math.Float32bits(%s))"}
)

type constant struct{ name, value, comment string }

func main() {
	log.SetFlags(0)
	log.SetPrefix("gen: ")
	dir := flag.String("dir", ".", "folder of the kernels")
	flag.Parse()
	if err := os.Chdir(*dir); err != nil {
		log.Fatal(err)
	}
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	files, err := filepath.Glob("*.cu")
	if err != nil || len(files) == 0 {
		return errors.Join(err, errors.New("there is no .cu file here"))
	}
	if err := os.RemoveAll("ptx"); err != nil {
		return err
	}
	if err := os.Mkdir("ptx", 0o755); err != nil {
		return err
	}
	var kernels []kernel
	var constants []constant
	seen := map[string]string{}
	for _, f := range files {
		base := strings.TrimSuffix(f, ".cu")
		list, err := declared(f)
		if err != nil {
			return err
		}
		for _, k := range list {
			if other, ok := seen[k.name]; ok {
				return fmt.Errorf("%s: kernel %s is declared in %s, too", f, k.name, other)
			}
			seen[k.name] = f
		}
		err = together(len(targets), func(i int) error {
			t := targets[i]
			ptx, err := clang(f, t, "-S", "-O3", "-o", "-")
			if err != nil {
				return err
			}
			if err := compare(list, ptx); err != nil {
				return fmt.Errorf("%s for %s: %w", f, t.arch, err)
			}
			return os.WriteFile(filepath.Join("ptx", base+"."+t.arch+".ptx"), ptx, 0o644)
		})
		if err != nil {
			return err
		}
		kernels = append(kernels, list...)
		c, err := exported(f)
		if err != nil {
			return err
		}
		constants = append(constants, c...)
	}
	headers, err := filepath.Glob("*.h")
	if err != nil {
		return err
	}
	for _, f := range headers {
		c, err := exported(f)
		if err != nil {
			return err
		}
		constants = append(constants, c...)
	}
	if err := writeLaunch(kernels, constants); err != nil {
		return err
	}
	if err := writeTable(files, kernels); err != nil {
		return err
	}
	return writeResources(files)
}

// together calls f with 0 to n-1, as many at a time as there are processors.
func together(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	atOnce := make(chan struct{}, runtime.NumCPU())
	for i := range n {
		wg.Go(func() {
			atOnce <- struct{}{}
			defer func() { <-atOnce }()
			errs[i] = f(i)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// clang compiles f for the device.
func clang(f string, t target, args ...string) ([]byte, error) {
	args = append([]string{
		"-x", "cuda", "--cuda-device-only", "--cuda-gpu-arch=" + t.arch, "--cuda-feature=+" + t.ptx,
		"-nocudainc", "-nocudalib", "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror",
	}, append(args, f)...)
	cmd := exec.Command("clang-19", args...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("clang-19 %s: %w\n%s", strings.Join(args, " "), err, complaint.Bytes())
	}
	return out, nil
}

var declaration = regexp.MustCompile(`extern\s+"C"\s+__attribute__\(\(global\)\)\s+void\s+(?:__attribute__\(\(launch_bounds\([^)]*\)\)\)\s*)?(\w+)\s*\(([^)]*)\)`)

// declared returns the kernels of a file, in the order in which they stand.
func declared(f string) ([]kernel, error) {
	text, err := clang(f, targets[len(targets)-1], "-E", "-P")
	if err != nil {
		return nil, err
	}
	var list []kernel
	for _, m := range declaration.FindAllSubmatch(text, -1) {
		k := kernel{file: strings.TrimSuffix(f, ".cu"), name: string(m[1])}
		for _, p := range strings.Split(string(m[2]), ",") {
			p, err := parseParam(p)
			if err != nil {
				return nil, fmt.Errorf("%s: kernel %s: %w", f, k.name, err)
			}
			k.params = append(k.params, p)
		}
		list = append(list, k)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s declares no kernel", f)
	}
	return list, nil
}

var declarator = regexp.MustCompile(`^(.*?[\s*])(\w+)$`)

func parseParam(text string) (param, error) {
	text = strings.Join(strings.Fields(text), " ")
	m := declarator.FindStringSubmatch(text)
	if m == nil {
		return param{}, fmt.Errorf("parameter %q has no name", text)
	}
	p := param{name: m[2], c: strings.TrimSpace(m[1])}
	switch {
	case strings.HasSuffix(p.c, "*") || strings.HasSuffix(p.c, "* __restrict"):
		p.kind = pointer
	case p.c == "int":
		p.kind = signed
	case p.c == "unsigned" || p.c == "unsigned int" || p.c == "u32":
		p.kind = unsigned
	case p.c == "float":
		p.kind = single
	default:
		return param{}, fmt.Errorf("parameter %q is neither pointer nor int, unsigned or float", text)
	}
	return p, nil
}

var (
	entry     = regexp.MustCompile(`(?s)\.entry (\w+)\(([^)]*)\)`)
	entryItem = regexp.MustCompile(`\.param \.(\w+)`)
)

// compare holds the declarations against the parameter lists of PTX.
func compare(list []kernel, ptx []byte) error {
	entries := map[string][]string{}
	for _, m := range entry.FindAllSubmatch(ptx, -1) {
		types := []string{}
		for _, item := range entryItem.FindAllSubmatch(m[2], -1) {
			types = append(types, string(item[1]))
		}
		entries[string(m[1])] = types
	}
	for _, k := range list {
		got, ok := entries[k.name]
		if !ok {
			return fmt.Errorf("PTX has no kernel %s", k.name)
		}
		var want []string
		for _, p := range k.params {
			want = append(want, p.kind.ptx)
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("kernel %s has the parameters %v in PTX, %v in the source", k.name, got, want)
		}
		delete(entries, k.name)
	}
	for name := range entries {
		return fmt.Errorf("PTX has a kernel %s that the source does not declare", name)
	}
	return nil
}

var exportedLine = regexp.MustCompile(`(?m)^constexpr int (\w+) = ([^;]+); +// exported(?:: (.*))?$`)

func exported(f string) ([]constant, error) {
	b, err := os.ReadFile(f)
	if err != nil {
		return nil, err
	}
	var list []constant
	for _, m := range exportedLine.FindAllSubmatch(b, -1) {
		list = append(list, constant{string(m[1]), string(m[2]), string(m[3])})
	}
	return list, nil
}

// goName turns a name of C into one of Go.
func goName(c string, first bool) string {
	var b strings.Builder
	for i, word := range strings.Split(c, "_") {
		if word == "" {
			continue
		}
		if i > 0 || first {
			word = strings.ToUpper(word[:1]) + word[1:]
		}
		b.WriteString(word)
	}
	return b.String()
}

func writeLaunch(kernels []kernel, constants []constant) error {
	var b bytes.Buffer
	b.WriteString("//go:build cuda && linux\n\n// Code generated by gen. DO NOT EDIT.\n\npackage kernel\n\nimport (\n")
	if slices.ContainsFunc(kernels, func(k kernel) bool {
		return slices.ContainsFunc(k.params, func(p param) bool { return p.kind == single })
	}) {
		b.WriteString("\t\"math\"\n\n")
	}
	b.WriteString("\t\"github.com/diffdenoise/denoised/kernels/cuda/driver\"\n)\n\n")
	if len(constants) > 0 {
		b.WriteString("// Constants of the kernels.\nconst (\n")
		for _, c := range constants {
			fmt.Fprintf(&b, "\t%s = %s", c.name, c.value)
			if c.comment != "" {
				fmt.Fprintf(&b, " // %s", c.comment)
			}
			b.WriteString("\n")
		}
		b.WriteString(")\n\n")
	}
	b.WriteString("// entries are the kernels by number, each with the file that it is in.\nvar entries = [...]entry{\n")
	for _, k := range kernels {
		fmt.Fprintf(&b, "\t{%q, %q},\n", k.file, k.name)
	}
	b.WriteString("}\n\n")
	for i, k := range kernels {
		name := goName(k.name, true)
		var params, slots []string
		for _, p := range k.params {
			n := goName(p.name, false)
			if reserved[n] {
				n += "_"
			}
			params = append(params, n+" "+p.kind.goType)
			slots = append(slots, fmt.Sprintf(p.kind.slot, n))
		}
		fmt.Fprintf(&b, "// %s launches %s of %s.cu.\n", name, k.name, k.file)
		head := fmt.Sprintf("func (k *Set) %s(on *driver.Stream, grid, block [3]int, shared int", name)
		b.WriteString(statement(head, params, ") error {"))
		b.WriteString(statement(fmt.Sprintf("\treturn on.Launch(k.functions[%d], grid, block, shared", i), slots, ")"))
		b.WriteString("}\n\n")
	}
	text, err := format.Source(b.Bytes())
	if err != nil {
		return fmt.Errorf("launch.go: %w\n%s", err, b.Bytes())
	}
	return os.WriteFile("launch.go", text, 0o644)
}

// statement is one, in lines of at most 120 columns: what comes first, the items after commas, and the end.
func statement(first string, items []string, end string) string {
	const most = 120
	indent := "\n\t" + first[:len(first)-len(strings.TrimLeft(first, "\t"))]
	var b strings.Builder
	b.WriteString(first)
	column := len(first) + len(",")
	for i, item := range items {
		b.WriteString(",")
		need := len(" ") + len(item) + len(",")
		if i == len(items)-1 {
			need += len(end)
		}
		if column+need > most {
			b.WriteString(indent)
			column = len(indent)
		} else {
			b.WriteString(" ")
		}
		b.WriteString(item)
		column += need
	}
	b.WriteString(end + "\n")
	return b.String()
}

// reserved are names that the generated methods use or that Go keeps.
var reserved = map[string]bool{"k": true, "on": true, "grid": true, "block": true, "shared": true, "math": true, "driver": true, "range": true, "type": true, "func": true, "map": true, "var": true, "len": true}

func writeTable(files []string, kernels []kernel) error {
	var b bytes.Buffer
	b.WriteString("// Code generated by gen. DO NOT EDIT.\n")
	for _, f := range files {
		fmt.Fprintf(&b, "#include \"../%s\"\n", f)
	}
	for _, k := range kernels {
		fmt.Fprintf(&b, "EMU_REGISTER(%s)\n", k.name)
	}
	if err := os.MkdirAll("emu", 0o755); err != nil {
		return err
	}
	return os.WriteFile("emu/table.inc", b.Bytes(), 0o644)
}

// resourceFile is the table; its first line names the PTX that it is of.
const resourceFile = "resources.txt"

func writeResources(files []string) error {
	sum := sha256.New()
	for _, f := range files {
		for _, t := range targets {
			b, err := os.ReadFile(filepath.Join("ptx", strings.TrimSuffix(f, ".cu")+"."+t.arch+".ptx"))
			if err != nil {
				return err
			}
			sum.Write(b)
		}
	}
	head := fmt.Sprintf("# PTX %x\n", sum.Sum(nil))
	ptxas := os.Getenv("PTXAS")
	if ptxas == "" {
		ptxas, _ = exec.LookPath("ptxas")
	}
	if ptxas == "" {
		old, err := os.ReadFile(resourceFile)
		if err != nil || !bytes.HasPrefix(old, []byte(head)) {
			return fmt.Errorf("%s is not of this PTX; install ptxas (CUDA 11.8) or name it in PTXAS, and generate again", resourceFile)
		}
		return nil
	}
	var b bytes.Buffer
	b.WriteString(head)
	b.WriteString("# As ptxas of CUDA 11.8 reports it; shared memory is the static part.\n")
	fmt.Fprintf(&b, "%-8s%-36s%10s%14s%14s%10s\n", "arch", "kernel", "registers", "spill stores", "spill loads", "shared")
	tables := make([][]resource, len(assembled)*len(files))
	err := together(len(tables), func(i int) (err error) {
		a, base := assembled[i/len(files)], strings.TrimSuffix(files[i%len(files)], ".cu")
		tables[i], err = resources(ptxas, a.arch, filepath.Join("ptx", base+"."+a.target+".ptx"))
		return err
	})
	if err != nil {
		return err
	}
	for i, a := range assembled {
		for k := range files {
			for _, r := range tables[i*len(files)+k] {
				fmt.Fprintf(&b, "%-8s%-36s%10s%14s%14s%10s\n", a.arch, r.kernel, r.registers, r.stores, r.loads, r.shared)
			}
		}
	}
	return os.WriteFile(resourceFile, b.Bytes(), 0o644)
}

type resource struct{ kernel, registers, stores, loads, shared string }

var (
	compiling = regexp.MustCompile(`Compiling entry function '(\w+)'`)
	spills    = regexp.MustCompile(`(\d+) bytes spill stores, (\d+) bytes spill loads`)
	used      = regexp.MustCompile(`Used (\d+) registers`)
	sharedUse = regexp.MustCompile(`(\d+) bytes smem`)
)

// resources asks ptxas what the kernels of a PTX file take.
func resources(ptxas, arch, file string) ([]resource, error) {
	out, err := exec.Command(ptxas, "-v", "--gpu-name", arch, "-o", os.DevNull, file).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("ptxas for %s: %s: %w\n%s", arch, file, err, out)
	}
	var rows []resource
	for _, line := range strings.Split(string(out), "\n") {
		if m := compiling.FindStringSubmatch(line); m != nil {
			rows = append(rows, resource{kernel: m[1], shared: "0"})
		}
		if len(rows) == 0 {
			continue
		}
		r := &rows[len(rows)-1]
		if m := spills.FindStringSubmatch(line); m != nil {
			r.stores, r.loads = m[1], m[2]
		}
		if m := used.FindStringSubmatch(line); m != nil {
			r.registers = m[1]
		}
		if m := sharedUse.FindStringSubmatch(line); m != nil {
			r.shared = m[1]
		}
	}
	slices.SortFunc(rows, func(a, b resource) int { return strings.Compare(a.kernel, b.kernel) })
	return rows, nil
}
