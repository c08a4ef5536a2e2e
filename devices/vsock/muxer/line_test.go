package muxer

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseConnect(t *testing.T) {
	for line, want := range map[string]int64{
		"CONNECT 52": 52, "connect 0": 0, "Connect  4294967295": 1<<32 - 1, "CONNECT\t7\r": 7, " CONNECT 8 ": 8, "CONNECT 00052": 52,
		"": -1, "CONNECT": -1, "CONNECT ": -1, "CONNECT 4294967296": -1, "CONNECT -1": -1, "CONNECT +1": -1, "CONNECT 0x10": -1, "CONNECT 1_0": -1,
		"CONNECT 1 2": -1, "CONNECT1": -1, "CONNECTS 1": -1, "GET / HTTP/1.1": -1, "CONNECT 1\x00": -1, "CONNECT \xff": -1, "52": -1,
	} {
		got, err := parseConnect([]byte(line))
		if (err == nil) != (want >= 0) || err == nil && int64(got) != want {
			t.Errorf("%q: %d, %v", line, got, err)
		}
	}
}

// FuzzConnect: a line that is taken names its port, and nothing else is taken.
func FuzzConnect(f *testing.F) {
	f.Add([]byte("CONNECT 52"))
	f.Add([]byte("connect 4294967295\r"))
	f.Add([]byte("CONNECT 1 2"))
	f.Fuzz(func(t *testing.T, line []byte) {
		port, err := parseConnect(line)
		if err != nil {
			return
		}
		words := strings.Fields(string(line))
		if len(words) != 2 || !strings.EqualFold(words[0], "connect") || strings.TrimLeft(words[1], "0") != strings.TrimLeft(fmt.Sprint(port), "0") {
			t.Errorf("%q gave %d", line, port)
		}
	})
}
