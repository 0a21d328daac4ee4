// Package evidence adds up what the images of a series tell of it, such as how its noise is
// correlated, which is the same in all of them.
package evidence

import (
	"encoding/json"
	"fmt"
	"math"
)

// Most is how many numbers Sums can have.
const Most = 32

// Sums are up to Most finite numbers that are added for each image that tells something. Whoever
// makes them knows what they mean; nil is nothing. They are values: nothing changes them.
type Sums []float64

// Plus returns what s and o tell together. Sums with too many numbers, or such that are not
// finite, tell nothing. Of different lengths they are by different methods, and o, the later, stands.
func (s Sums) Plus(o Sums) Sums {
	if !o.valid() {
		return s
	}
	if len(s) != len(o) {
		return o
	}
	sum := make(Sums, len(s))
	for i, v := range s {
		sum[i] = v + o[i]
	}
	if !sum.valid() {
		return s
	}
	return sum
}

func (s Sums) valid() bool {
	for _, v := range s {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return false
		}
	}
	return 0 < len(s) && len(s) <= Most
}

// String is the JSON of s, empty for nothing. Parse reads it back, bit for bit.
func (s Sums) String() string {
	if !s.valid() {
		return ""
	}
	b, err := json.Marshal([]float64(s))
	if err != nil {
		return "" // there are no others than finite numbers
	}
	return string(b)
}

// Parse is the opposite of String.
func Parse(text string) (Sums, error) {
	if text == "" {
		return nil, nil
	}
	var s Sums
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return nil, fmt.Errorf("evidence %.40q: %w", text, err)
	}
	if !s.valid() {
		return nil, fmt.Errorf("evidence %.40q: %d numbers, allowed are 1 to %d", text, len(s), Most)
	}
	return s, nil
}
