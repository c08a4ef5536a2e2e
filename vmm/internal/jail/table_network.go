package jail

import "golang.org/x/sys/unix"

// option is a socket option by its level and name (setsockopt(2)).
type option struct{ level, name uint64 }

// setOptions are what package net and netstack set on a socket. Others stay
// shut, since some take programs (SO_ATTACH_FILTER) or tables of the packet
// filter (IPT_SO_SET_REPLACE): a way into the kernel that nobody here goes.
var setOptions = []option{
	{unix.SOL_SOCKET, unix.SO_BROADCAST},        // package net, on each socket it makes
	{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY},       // the same, over IPv6
	{unix.IPPROTO_TCP, unix.TCP_NODELAY},        // the same, over TCP: the guest decides what goes into a segment
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE},        // the same, on each connection that a listener takes
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},       // with it
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},      // with it
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT},        // with it
	{unix.SOL_SOCKET, unix.SO_LINGER},           // a reset of the guest's is passed on as one
	{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER},     // a datagram of the guest's with Don't Fragment
	{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER}, // the same, over IPv6
}

// getOptions are what they ask for.
var getOptions = []option{
	{unix.SOL_SOCKET, unix.SO_ERROR},   // package net: how a connect ended that did not block
	{unix.SOL_SOCKET, unix.SO_TYPE},    // package net: what an echo socket is that it is given
	{unix.IPPROTO_IP, unix.IP_MTU},     // the path's MTU, for the guest
	{unix.IPPROTO_IPV6, unix.IPV6_MTU}, // the same, over IPv6
}

// matchOptions lets a call through for these options, its second and third arguments.
func matchOptions(options []option) (m []match) {
	for _, o := range options {
		m = append(m, match{{arg: 1, op: opEq, val: o.level}, {arg: 2, op: opEq, val: o.name}})
	}
	return m
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
	var kinds []match
	for _, s := range sockets {
		kinds = append(kinds, match{
			{arg: 0, op: opEq, val: s[0]},
			{arg: 1, op: opEq, val: s[1] | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC},
			{arg: 2, op: opEq, val: s[2]}})
	}
	return []rule{
		{nr: unix.SYS_SOCKET, when: kinds, why: "TCP, UDP and echo sockets over IPv4 and IPv6, as package net asks for them"},
		{nr: unix.SYS_CONNECT, why: "the guest's outgoing connections and flows"},
		{nr: unix.SYS_BIND, why: "a port of the host's for a UDP flow or an echo socket; Landlock (ABI 4) refuses it to TCP"},
		{nr: unix.SYS_ACCEPT4, why: "published ports, which listen since before the guest ran"},
		{nr: unix.SYS_GETSOCKNAME, why: "package net asks after each connect, bind and accept"},
		{nr: unix.SYS_GETPEERNAME, why: "the same"},
		{nr: unix.SYS_SETSOCKOPT, when: matchOptions(setOptions), why: "see setOptions"},
		{nr: unix.SYS_GETSOCKOPT, when: matchOptions(getOptions), why: "see getOptions"},
		{nr: unix.SYS_SENDTO, why: "UDP and echo requests"},
		{nr: unix.SYS_RECVFROM, why: "UDP and echo answers"},
		{nr: unix.SYS_SENDMSG, why: "UDP with addresses and ancillary data"},
		{nr: unix.SYS_RECVMSG, why: "UDP with addresses, and the queue of ICMP errors"},
		{nr: unix.SYS_SHUTDOWN, why: "half-closed TCP"},
		{nr: unix.SYS_PPOLL, why: "whether a connection to a published port was reset while it waits for the guest's service"},
	}
}
