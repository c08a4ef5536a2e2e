package suite

import (
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/smaps"
)

func TestGrown(t *testing.T) {
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	any := smaps.Named("[stack]")
	// A shell that takes some MiB after its first byte, and one that takes nothing.
	v, err := grown(t.Context(), sh(`echo up; x=$(head -c 8000000 /dev/zero | tr '\0' a); while :; do sleep 0.05; done`), any, 500*time.Millisecond)
	if err != nil || v < 4000 {
		t.Errorf("%v KiB, %v", v, err)
	}
	v, err = grown(t.Context(), sh(`echo up; while :; do sleep 0.05; done`), any, 300*time.Millisecond)
	if err != nil || v > 500 {
		t.Errorf("%v KiB, %v", v, err)
	}
	if _, err := grown(t.Context(), sh(`echo why >&2; exit 3`), any, time.Minute); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("no byte: %v", err)
	}
	if _, err := grown(t.Context(), sh(`echo up; sleep 0.1; exit 3`), any, time.Minute); err == nil {
		t.Error("a program that ended was watched to the end")
	}
	if _, err := grown(t.Context(), sh(`echo up; while :; do sleep 0.05; done`), smaps.Named("no such"), time.Second); err == nil || !strings.Contains(err.Error(), "not among") {
		t.Errorf("no guest memory: %v", err)
	}
}
