//go:build !linux && !purego

package cpu

// allowAMX: who lets a process use the tile registers elsewhere is not known here.
func allowAMX() bool { return false }
