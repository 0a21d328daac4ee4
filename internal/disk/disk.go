// Package disk tells how much room there is.
package disk

// Space returns the size of the disk that holds path and what an ordinary user may
// still write to it, in bytes.
func Space(path string) (total, free uint64, err error) { return space(path) }
