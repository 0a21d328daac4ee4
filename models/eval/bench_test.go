package eval

import (
	"testing"
)

func BenchmarkClassical256(b *testing.B) {
	in := noisyInput(256, 256)
	for _, m := range Classical() {
		b.Run(m.Name, func(b *testing.B) {
			for b.Loop() {
				if _, err := m.Run(b.Context(), in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
