//go:build unix

package daemon

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// diskUse returns the fraction in use of the disk that holds path, counted as
// the spool counts it (what this user cannot write is in use), and the free bytes.
func diskUse(path string) (used float64, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("look at the disk of %s: %w", path, err)
	}
	if st.Blocks == 0 {
		return 0, 0, fmt.Errorf("look at the disk of %s: it has no size", path)
	}
	return 1 - float64(st.Bavail)/float64(st.Blocks), int64(st.Bavail) * int64(st.Bsize), nil
}
