package jail

import "golang.org/x/sys/unix"

// option is a socket option by its level and name (setsockopt(2)).
type option struct{ level, name uint64 }

// setOptions are what package net and netstack set on a socket. Others stay
// shut, since some take programs (SO_ATTACH_FILTER) or tables of the packet
// filter (IPT_SO_SET_REPLACE): a way into the kernel that nobody here goes.
var setOptions = []option{
	{unix.SOL_SOCKET, unix.SO_BROADCAST},        // package net, on each socket it makes
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE},        // package net, on each TCP connection
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},       // the same
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},      // the same
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT},        // the same
	{unix.IPPROTO_TCP, unix.TCP_NODELAY},        // the same: the guest decides what goes into a segment
	{unix.SOL_SOCKET, unix.SO_LINGER},           // a reset of the guest's is passed on as one
	{unix.SOL_SOCKET, unix.SO_RCVBUF},           // bounded memory of the kernel's for each flow
	{unix.SOL_SOCKET, unix.SO_SNDBUF},           // the same
	{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY},       // package net, on each IPv6 socket
	{unix.IPPROTO_IP, unix.IP_TTL},              // the guest's hop limit: traceroute
	{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS}, // the same
	{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER},     // the guest's Don't Fragment
	{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER}, // the same
	{unix.IPPROTO_IP, unix.IP_RECVERR},          // ICMP errors of a flow, for the guest
	{unix.IPPROTO_IPV6, unix.IPV6_RECVERR},      // the same
	{unix.IPPROTO_IP, unix.IP_RECVTTL},          // the hop limit of an answered ping
	{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT}, // the same
}

// sockets are the kinds that the Network group may make: family, type without
// flags, protocol. An echo socket (icmp(7)) needs no privilege, only a group in
// net.ipv4.ping_group_range.
var sockets = [][3]uint64{
	{unix.AF_INET, unix.SOCK_STREAM, 0},
	{unix.AF_INET6, unix.SOCK_STREAM, 0},
	{unix.AF_INET, unix.SOCK_DGRAM, 0},
	{unix.AF_INET6, unix.SOCK_DGRAM, 0},
	{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP},
	{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6},
}

// networkRules are what a user-mode network does at run time: it connects to
// where the guest wants to go, and takes connections from sockets that listen
// already. There is no listen(2), nor a Unix, raw, packet or netlink socket.
func networkRules() []rule {
	var kinds, opts []match
	for _, s := range sockets {
		kinds = append(kinds, match{
			{arg: 0, op: opEq, val: s[0]},
			{arg: 1, op: opEq, val: s[1] | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC},
			{arg: 2, op: opEq, val: s[2]}})
	}
	for _, o := range setOptions {
		opts = append(opts, match{{arg: 1, op: opEq, val: o.level}, {arg: 2, op: opEq, val: o.name}})
	}
	return []rule{
		{nr: unix.SYS_SOCKET, when: kinds, why: "TCP, UDP and echo sockets over IPv4 and IPv6, as package net asks for them"},
		{nr: unix.SYS_CONNECT, why: "the guest's outgoing connections and flows"},
		{nr: unix.SYS_BIND, why: "a port of the host's for a UDP flow or an echo socket; Landlock (ABI 4) refuses it to TCP"},
		{nr: unix.SYS_ACCEPT4, why: "published ports, which listen since before the guest ran"},
		{nr: unix.SYS_GETSOCKNAME, why: "package net asks after each connect, bind and accept"},
		{nr: unix.SYS_GETPEERNAME, why: "the same"},
		{nr: unix.SYS_SETSOCKOPT, when: opts, why: "see setOptions"},
		{nr: unix.SYS_GETSOCKOPT, why: "SO_ERROR after a connect that did not block; the path's MTU"},
		{nr: unix.SYS_SENDTO, why: "UDP and echo requests"},
		{nr: unix.SYS_RECVFROM, why: "UDP and echo answers"},
		{nr: unix.SYS_SENDMSG, why: "UDP with addresses and ancillary data"},
		{nr: unix.SYS_RECVMSG, why: "UDP with addresses, and the queue of ICMP errors"},
		{nr: unix.SYS_SHUTDOWN, why: "half-closed TCP"},
		{nr: unix.SYS_PPOLL, why: "whether a connection to a published port was reset while it waits for the guest's service"},
	}
}
