package dcm

import (
	"testing"
	"unsafe"
)

// The arithmetic beside MaxElements counts on this.
func TestEntrySize(t *testing.T) {
	if n := unsafe.Sizeof(element{}); n != 32 {
		t.Errorf("an entry of the index takes %d bytes", n)
	}
}
