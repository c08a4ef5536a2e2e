package main

import (
	"io"
	"strings"
	"testing"
)

func TestFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-n 0", "-n 0"}, {"-mb 0", "-mb 0"}, {"-count 1", "-count 1"}, {"-loads up,sideways", "sideways"}, {"x", `"x" is not a flag`},
	} {
		var o options
		if err := o.parse(strings.Fields(c.args), io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.args, err)
		}
	}
	var o options
	if err := o.parse([]string{"-loads", "up,rr"}, io.Discard); err != nil || o.loads != "up,rr" {
		t.Errorf("%v, %v", o.loads, err)
	}
}
