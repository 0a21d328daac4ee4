package daemon

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// memoryAvailable is what this process may use: the smallest limit of its
// control groups, or what the machine has. 0: not known.
func memoryAvailable() int64 {
	var limit int64
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		limit = int64(info.Totalram) * int64(info.Unit)
	}
	line, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return limit
	}
	for l := range strings.Lines(string(line)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(l), "0::")
		if !ok {
			continue
		}
		for path = filepath.Clean("/" + path); ; path = filepath.Dir(path) {
			text, err := os.ReadFile("/sys/fs/cgroup" + filepath.Join(path, "memory.max"))
			if err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 && (limit == 0 || n < limit) {
					limit = n
				}
			}
			if path == "/" {
				break
			}
		}
	}
	return limit
}
