// Package policy decides what a guest may reach: which addresses, ports and
// protocols its packets may go to, and which names its DNS queries may ask for.
// It opens nothing itself; a network asks it before it does.
//
// # Rules
//
// A rule is a line, or the value of a flag; "#" begins a comment:
//
//	deny-all                          the default is to deny
//	allow-all                         the default is to allow, as it is without rules
//	allow|deny [tcp|udp|icmp] TARGET[:PORTS]
//	allow|deny tcp|udp|icmp           to every address
//
// TARGET is one of
//
//	all              every address ("any" and "*" are the same word)
//	192.0.2.7        an address, IPv4 or IPv6
//	192.0.2.0/24     a prefix (CIDR)
//	[2001:db8::]/32  an IPv6 address or prefix; the brackets are needed before ":PORTS" only
//	api.example.com  the addresses that the gateway's own DNS gave for this name
//	*.example.com    the same for every name below example.com, not for example.com itself
//	metadata         the addresses where clouds tell an instance its secrets
//	private          addresses that are not of the public Internet
//
// and PORTS a list of ports and ranges: 443 or 80,443,8000-8080. A rule without
// a protocol is for all three, with PORTS for tcp and udp. A name of one label
// is written with a dot at its end, as "db.", so that a mistyped word is an
// error and not a name. "deny all" alone means deny-all.
//
// # Precedence
//
//  1. Rules are read from top to bottom, and the first that matches decides.
//     So an exception stands before what it is an exception of.
//  2. Where none matches, the default decides: deny if deny-all is anywhere among
//     the rules, otherwise allow. Where deny-all stands makes no difference.
//  3. What a closing word closes, no name opens: "deny private" and "deny
//     metadata" hold against every "allow NAME" wherever they stand, since who
//     runs a name's DNS chooses its addresses. An allow rule with the address
//     itself, before the word, opens it. Names never open metadata, loopback,
//     multicast, broadcast and "this host" addresses, whether closed or not.
//  4. A deny rule for addresses also matches IPv6 addresses that carry a matching IPv4
//     address (NAT64, 6to4, Teredo, IPv4-compatible and -translated); an allow
//     rule does not. An IPv4-mapped address is the IPv4 address itself. A NAT64
//     prefix of the network's own cannot be known: close it by a rule.
//
// # Names
//
// "allow NAME" allows an address from the moment that the gateway's DNS gave it
// for this name, until its TTL and a grace of five minutes have passed; each
// answer renews that. Nothing is looked up in advance: before the first answer
// the rule allows nothing. What is open when a pin expires stays open.
//
// A TCP stream that begins with a TLS ClientHello must in addition name the
// server (SNI) as one of the rules that allow its address does; no name, an
// unreadable one or one hidden by ECH (whose outer name counts) is as a wrong
// one: the rule does not match, and the rules after it decide. What is not TLS
// from its first byte on is allowed by the address alone. QUIC hides the name,
// so that an "allow NAME" rule is for UDP port 443 only where it says udp.
//
// "deny NAME" without ports and protocol keeps the gateway's DNS from answering
// for the name; with and without, it denies the addresses known for the
// name, whoever else is served there, and every TLS stream that names it.
//
// # DNS
//
// Under deny-all the gateway's DNS asks upstream only for names that an "allow
// NAME" rule matches, or for all of them if an "allow all" rule with a port or
// protocol is there: otherwise a query would carry data out. With the default
// open it answers for every name but those that "deny NAME" refuses: prefixes
// that add up to every address do not close it, deny-all does.
package policy
