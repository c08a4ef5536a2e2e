package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestRun: an unknown step and, but on the guest, a known one are failures.
func TestRun(t *testing.T) {
	for step, says := range map[string]string{"nonsense": "no step", "check": "FAILED"} {
		var out bytes.Buffer
		if status := run([]string{step}, &out); status == 0 || !strings.Contains(out.String(), says) {
			t.Errorf("%s: status %d, %q", step, status, out.String())
		}
	}
}
