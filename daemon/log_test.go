package daemon

import (
	"fmt"
	"testing"

	"go.uber.org/zap"
)

// TestRecentLog: what is said again and again is one line with the latest
// fields, apart for each destination, and old lines make room.
func TestRecentLog(t *testing.T) {
	r := newRecentLog()
	log := zap.New(r)
	log.Warn("rare")
	for i := range 1000 {
		log.Error("image not taken", zap.Int("n", i))
		log.Warn("not reached", zap.String("destination", fmt.Sprintf("pacs%d", i%2)))
		log.Info("not for this list")
	}
	want := []string{"not reached destination=pacs1 500", "image not taken n=999 1000", "not reached destination=pacs0 500", "rare  1"}
	check := func() {
		t.Helper()
		got := r.recent()
		if len(got) != len(want) {
			t.Fatalf("%+v", got)
		}
		for i, l := range got {
			if s := fmt.Sprintf("%s %s %d", l.Message, l.Detail, l.Times); s != want[i] {
				t.Errorf("line %d: %q, want %q", i, s, want[i])
			}
		}
	}
	check()
	want = nil
	for i := range maxLogLines + 5 {
		log.Warn(fmt.Sprint("message ", i))
		if i >= 5 {
			want = append([]string{fmt.Sprintf("message %d  1", i)}, want...)
		}
	}
	check()
}
