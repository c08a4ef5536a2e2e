package main

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/bench/suite/boot"
)

func TestOptions(t *testing.T) {
	for _, c := range []struct{ args, err string }{
		{"-n 0", "-n 0"}, {"-m 8", "-m 8"}, {"x", `"x" is not a flag`}, {"-also x", "NAME=PATH"}, {"-also a/b=c", "NAME=PATH"},
		{"-n 5 -also old=/bin/true", ""},
	} {
		var o options
		err := o.parse(strings.Fields(c.args), io.Discard)
		if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.args, err, c.err)
		}
	}
	o := options{Options: boot.Options{Kernel: "/nonexistent", Disk: os.DevNull}}
	if err := o.FindKernel(t.Context(), t.TempDir(), false, io.Discard); err == nil {
		t.Error("a kernel that is not there was taken")
	}
	o = options{Options: boot.Options{Kernel: "none"}}
	if err := o.FindKernel(t.Context(), t.TempDir(), false, io.Discard); err != nil || o.Kernel != "" {
		t.Errorf("no kernel wanted: %q, %v", o.Kernel, err)
	}
}
