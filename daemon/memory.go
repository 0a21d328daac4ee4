package daemon

import (
	"os"
	"runtime/debug"
)

// LimitMemory makes the garbage collector work harder before the process
// reaches four fifths of what it may have, unless the environment says
// otherwise. It returns the limit in bytes, 0 for none.
func LimitMemory() int64 {
	available := memoryAvailable()
	if os.Getenv("GOMEMLIMIT") != "" || available <= 0 {
		return 0
	}
	limit := available / 5 * 4
	debug.SetMemoryLimit(limit)
	return limit
}
