//go:build cuda && linux && emulated && race

package cuda

const raceEnabled = true
