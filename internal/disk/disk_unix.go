//go:build unix

package disk

import (
	"os"

	"golang.org/x/sys/unix"
)

func space(path string) (total, free uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	block := uint64(st.Bsize) // the types of the fields differ between systems
	return uint64(st.Blocks) * block, uint64(st.Bavail) * block, nil
}
