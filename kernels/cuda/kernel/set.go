//go:build cuda && linux

package kernel

import (
	"embed"
	"fmt"

	"github.com/diffdenoise/denoised/kernels/cuda/driver"
)

//go:embed ptx/*.ptx
var ptx embed.FS

// entry is a kernel and the .cu file that it is in.
type entry struct{ file, name string }

// Set is all kernels, loaded on one device. Its methods put launches on a stream; they are
// safe for concurrent use. Pointers are not checked: a wrong one is an error of the device
// that costs its context.
type Set struct {
	arch      string
	modules   []*driver.Module
	functions [len(entries)]*driver.Function
}

// targets are the architectures that PTX is embedded for, newest first.
var targets = []struct {
	major, minor int
	name         string
}{{8, 0, "sm_80"}, {7, 5, "sm_75"}}

// Load compiles the kernels for a device. That takes the driver some seconds the first time;
// it keeps the result in its cache, if it has one that can be written.
func Load(d *driver.Device) (*Set, error) {
	k := new(Set)
	info := d.Info()
	for _, t := range targets {
		if info.Major > t.major || info.Major == t.major && info.Minor >= t.minor {
			k.arch = t.name
			break
		}
	}
	if k.arch == "" {
		return nil, fmt.Errorf("load kernels: %s has compute capability %d.%d, needed is 7.5 (Turing) or later", info.Name, info.Major, info.Minor)
	}
	modules := map[string]*driver.Module{}
	for i, e := range entries {
		m, ok := modules[e.file]
		if !ok {
			image, err := ptx.ReadFile("ptx/" + e.file + "." + k.arch + ".ptx")
			if err != nil {
				return nil, fmt.Errorf("load kernels: %w", err)
			}
			if m, err = d.Load(image); err != nil {
				k.Unload()
				return nil, fmt.Errorf("load kernels of %s.cu for %s: %w", e.file, k.arch, err)
			}
			modules[e.file] = m
			k.modules = append(k.modules, m)
		}
		f, err := m.Function(e.name)
		if err != nil {
			k.Unload()
			return nil, fmt.Errorf("load kernel %s: %w", e.name, err)
		}
		k.functions[i] = f
	}
	return k, nil
}

// AllowShared lets launches of a kernel have up to bytes of dynamic shared memory per block, beyond
// the 48 KiB that all may have.
func (k *Set) AllowShared(name string, bytes int) error {
	for i, e := range entries {
		if e.name == name {
			return k.functions[i].SetShared(bytes)
		}
	}
	return fmt.Errorf("allow shared memory: there is no kernel %s", name)
}

// Unload frees the kernels; none of them may be running.
func (k *Set) Unload() error {
	var first error
	for _, m := range k.modules {
		if err := m.Unload(); err != nil && first == nil {
			first = err
		}
	}
	k.modules = nil
	return first
}

// Arch returns the architecture whose PTX was loaded, such as "sm_80".
func (k *Set) Arch() string { return k.arch }

// Count returns the number of kernels.
func (k *Set) Count() int { return len(k.functions) }
