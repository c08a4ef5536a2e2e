package main

import "testing"

func TestNodes(t *testing.T) {
	seen := map[string]bool{}
	needed := 0
	for _, n := range nodes {
		if seen[n.name] {
			t.Errorf("%s is there twice", n.name)
		}
		seen[n.name] = true
		if n.needed {
			needed++
		}
	}
	if needed != 6 {
		t.Errorf("%d nodes are needed", needed)
	}
	// makedev of sys/types.h.
	for _, c := range []struct {
		major, minor uint32
		dev          uint64
	}{
		{0, 0, 0}, {2, 12, 0x20c}, {46, 1, 0x2e01}, {19, 35, 0x1323}, {342, 0, 0x15600}, {8, 0x80000, 0x80000800}, {19, 0x80001, 0x80001301},
	} {
		if got := (node{major: c.major, minor: c.minor}).dev(); got != c.dev {
			t.Errorf("makedev(%d, %#x) = %#x, want %#x", c.major, c.minor, got, c.dev)
		}
	}
	for _, m := range ownMounts {
		if err := m.check(); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"console", "null", "ld0a", "rld3e", "dk0", "rdk3"} {
		if !seen[name] {
			t.Errorf("no %s", name)
		}
	}
}
