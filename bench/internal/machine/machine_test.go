package machine

import (
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	got, err := parseStat(strings.NewReader("cpu  100 50 25 9999 9999 10 5 10 0 0\ncpu0 1 1 1 1 1 1 1 1\n"))
	if err != nil || got != 2 {
		t.Errorf("%v, %v; want 2 s", got, err)
	}
	for _, bad := range []string{"", "cpu 1 2\n", "cpu a b c d e f g h i j\n"} {
		if _, err := parseStat(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	u, err := ReadUsage()
	if err != nil || u.all <= 0 || u.own <= 0 {
		t.Errorf("this machine: %+v, %v", u, err)
	}
	at := time.Now()
	if got := Others(Usage{at, 10, 2}, Usage{at.Add(2 * time.Second), 14, 3}); got != 1.5 {
		t.Errorf("others %v, want 1.5", got)
	}
}
