package network

import "testing"

func TestSnake(t *testing.T) {
	for in, want := range map[string]string{
		"GuestFrames": "guest_frames", "DNSQueries": "dns_queries", "DHCP": "dhcp", "TooBig": "too_big",
		"ConnectionsTotal": "connections_total", "PingForbidden": "ping_forbidden", "X": "x",
	} {
		if got := snake(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
