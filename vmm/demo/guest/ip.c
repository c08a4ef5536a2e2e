// Ethernet, ARP (RFC 826), IPv4 (RFC 791), ICMP echo (RFC 792) and UDP (RFC 768).

#include "tcp.h"

enum { P_ICMP = 1, P_UDP = 17 };
enum { T_IP = 0x0800, T_ARP = 0x0806 };

const u8 broadcast[6] = { 255, 255, 255, 255, 255, 255 };

u64 sum_of(const void *at, u64 n, u64 s)
{
	const u8 *p = at;
	u64 blocks = n >> 5;

	if (blocks)
		__asm__("1: addq (%0),%1; adcq 8(%0),%1; adcq 16(%0),%1; adcq 24(%0),%1; adcq $0,%1; addq $32,%0; decq %2; jnz 1b"
			: "+r"(p), "+r"(s), "+r"(blocks)::"memory", "cc");
	for (n &= 31; n >= 4; n -= 4, p += 4) {
		s += *(const u32 *)p;
		s += s < *(const u32 *)p;
	}
	if (n & 2) {
		s += *(const u16 *)p;
		s += s < *(const u16 *)p;
		p += 2;
		n -= 2;
	}
	if (n) {
		s += *p;
		s += s < *p;
	}
	return s;
}

u16 fold(u64 s)
{
	s = (s & 0xffffffff) + (s >> 32);
	s = (s & 0xffff) + (s >> 16 & 0xffff) + (s >> 32);
	s = (s & 0xffff) + (s >> 16);
	return (s & 0xffff) + (s >> 16);
}

// pseudo is the sum of the pseudo header, of the addresses at ip+12.
static u64 pseudo(const u8 *ip, u8 proto, u32 l4_len)
{
	return (u64)*(const u32 *)(ip + 12) + *(const u32 *)(ip + 16) + be16(proto) + be16(l4_len);
}

static void ether(struct net *n, u8 *f, const u8 *to, u16 type)
{
	copy6(f, to);
	copy6(f + 6, n->mac);
	put16(f + 12, type);
}

u8 *ip_frame(struct net *n, struct tx *t, const u8 *mac, u32 dst, u8 proto, u32 l4_len)
{
	static u16 id;
	u8 *ip = t->frame + ETH;

	ether(n, t->frame, mac, T_IP);
	put16(ip, 0x4500);
	put16(ip + 2, 20 + l4_len);
	put16(ip + 4, ++id);
	put16(ip + 6, 0x4000);	// don't fragment
	put16(ip + 8, 64 << 8 | proto);
	put16(ip + 10, 0);
	put32(ip + 12, n->ip);
	put32(ip + 16, dst);
	*(u16 *)(ip + 10) = ~fold(sum_of(ip, 20, 0));
	return ip + 20;
}

void l4_sum(struct net *n, struct tx *t, u32 hlen, u32 at, const void *more, u32 more_len)
{
	u8 *ip = t->frame + ETH, *l4 = ip + 20;
	u64 s = pseudo(ip, ip[9], hlen + more_len);
	u16 c;

	if (n->d->features & N_CSUM) {
		t->h.flags = NH_NEEDS_CSUM;
		t->h.csum_start = ETH + 20;
		t->h.csum_offset = at;
		*(u16 *)(l4 + at) = fold(s);
		return;
	}
	*(u16 *)(l4 + at) = 0;
	c = ~fold(sum_of(more, more_len, sum_of(l4, hlen, s)));
	*(u16 *)(l4 + at) = c || ip[9] != P_UDP ? c : 0xffff;
}

void udp_send(struct net *n, const u8 *mac, u32 dst, u16 dport, u16 sport, const void *p, u32 len)
{
	struct tx *t = net_slot(n);
	u8 *u;

	if (!t || 28 + len > n->mtu)
		return;
	u = ip_frame(n, t, mac, dst, P_UDP, 8 + len);
	put16(u, sport);
	put16(u + 2, dport);
	put16(u + 4, 8 + len);
	l4_sum(n, t, 8, 6, p, len);
	net_send_copy(n, t, ETH + 28, p, len);
}

void arp_send(struct net *n, const u8 *to, u16 op, u32 ip, const u8 *mac)
{
	struct tx *t = net_slot(n);
	u8 *a;

	if (!t)
		return;
	ether(n, t->frame, to, T_ARP);
	a = t->frame + ETH;
	memcpy(a, "\0\1\10\0\6\4", 6);	// Ethernet, IPv4
	put16(a + 6, op);
	memcpy(a + 8, n->mac, 6);
	put32(a + 14, n->ip);
	memcpy(a + 18, mac, 6);
	put32(a + 24, ip);
	memset(a + 28, 0, 18);	// to the least length of a frame
	net_send(n, t, 60, NULL, 0);
}

void arp_ask(struct net *n, u32 ip) { arp_send(n, broadcast, 1, ip, (const u8 *)"\0\0\0\0\0\0"); }

static void arp_input(struct net *n, u8 *a, u32 len)
{
	u32 from = len >= 28 ? get32(a + 14) : 0;

	if (len < 28 || memcmp(a, "\0\1\10\0\6\4", 6))
		return;
	if (n->arp_want && from == n->arp_want) {
		memcpy(n->arp_mac, a + 8, 6);
		n->arp_want = 0;
		n->arp_got++;
	}
	if (get16(a + 6) == 1 && n->ip && get32(a + 24) == n->ip)
		arp_send(n, a + 8, 2, from, a + 8);
}

static void unreachable(struct net *n, const u8 *ip)
{
	struct tx *t = net_slot(n);
	u8 *c;

	if (!t)
		return;
	c = ip_frame(n, t, n->from, get32(ip + 12), P_ICMP, 36);
	memset(c, 0, 8);
	put16(c, 0x0303);	// port unreachable
	memcpy(c + 8, ip, 28);
	*(u16 *)(c + 2) = ~fold(sum_of(c, 36, 0));
	net_send(n, t, ETH + 20 + 36, NULL, 0);
}

static void icmp_input(struct net *n, const u8 *ip, u8 *c, u32 len)
{
	struct tx *t;
	u8 *out;

	if (len < 8 || fold(sum_of(c, len, 0)) != 0xffff) {
		n->badsum++;
		return;
	}
	if (c[0] == 0 && get16(c + 4) == n->ping_id && get16(c + 6) == n->ping_seq) {
		n->ping_from = get32(ip + 12);
		n->ping_len = len - 8;
		n->pings++;
	}
	if (c[0] != 8 || 20 + len > n->mtu || !(t = net_slot(n)))
		return;
	out = ip_frame(n, t, n->from, get32(ip + 12), P_ICMP, len);
	memcpy(out, c, 8);
	out[0] = 0;
	*(u16 *)(out + 2) = 0;
	*(u16 *)(out + 2) = ~fold(sum_of(c + 8, len - 8, sum_of(out, 8, 0)));
	net_send_copy(n, t, ETH + 28, c + 8, len - 8);
}

static void ip_input(struct net *n, const struct net_hdr *h, u8 *ip, u32 len)
{
	u32 hlen = len < 20 ? 0 : (ip[0] & 15) * 4, total, dst, l4_len;
	u8 *l4;

	if (len < 20 || ip[0] >> 4 != 4 || hlen < 20 || hlen > len || (total = get16(ip + 2)) > len || total < hlen) {
		n->malformed++;
		return;
	}
	if (fold(sum_of(ip, hlen, 0)) != 0xffff) {
		n->badsum++;
		return;
	}
	dst = get32(ip + 16);
	if ((n->ip && dst != n->ip && dst != 0xffffffff) || get16(ip + 6) & 0x3fff)
		return;	// another's, or a fragment
	l4 = ip + hlen;
	l4_len = total - hlen;
	if (ip[9] == P_ICMP) {
		icmp_input(n, ip, l4, l4_len);
		return;
	}
	if (ip[9] != P_UDP && ip[9] != P_TCP)
		return;
	if (l4_len < (ip[9] == P_UDP ? 8 : 20)) {
		n->malformed++;
		return;
	}
	// What the device vouches for needs no look; a sum of zero is none.
	if (n->d->features & N_GUEST_CSUM && h->flags & (NH_NEEDS_CSUM | NH_DATA_VALID))
		n->vouched++;
	else if (!(ip[9] == P_UDP && !get16(l4 + 6)) && fold(sum_of(l4, l4_len, pseudo(ip, ip[9], l4_len))) != 0xffff) {
		n->badsum++;
		return;
	}
	if (ip[9] == P_TCP) {
		tcp_input(n, get32(ip + 12), l4, l4_len);
		return;
	}
	if (get16(l4 + 4) < 8 || get16(l4 + 4) > l4_len) {
		n->malformed++;
		return;
	}
	if (n->udp)
		n->udp(n, get32(ip + 12), get16(l4), get16(l4 + 2), l4 + 8, get16(l4 + 4) - 8);
	else if (n->ip && dst == n->ip && hlen == 20)
		unreachable(n, ip);
}

void net_input(struct net *n, const struct net_hdr *h, u8 *f, u32 len)
{
	if (len < ETH) {
		n->malformed++;
		return;
	}
	if ((*(u32 *)f != *(u32 *)n->mac || *(u16 *)(f + 4) != *(u16 *)(n->mac + 4)) && !(f[0] & 1)) {
		n->foreign++;
		return;
	}
	copy6(n->from, f + 6);
	switch (get16(f + 12)) {
	case T_IP:
		ip_input(n, h, f + ETH, len - ETH);
		break;
	case T_ARP:
		arp_input(n, f + ETH, len - ETH);
	}
}

int arp_find(struct net *n, u32 ip, u32 ms, u8 mac[6])
{
	u64 t0 = rdtsc(), asked = 0, us;

	n->arp_want = ip;
	while ((us = us_of(rdtsc() - t0)) < ms * 1000ul && n->arp_want && !n->broken) {
		if (us >= asked) {	// again each second
			arp_ask(n, ip);
			net_flush(n);
			asked += 1000000;
		}
		net_step(n);
	}
	memcpy(mac, n->arp_mac, 6);
	if (!n->arp_want)
		return 1;
	n->arp_want = 0;
	return 0;
}

int ping(struct net *n, u32 ip, u32 len, u32 ms, u64 *us)
{
	struct tx *t = net_slot(n);
	u64 t0 = rdtsc(), was = n->pings;
	u8 *c;

	if (!t)
		return 0;
	n->ping_id = 0x5341;
	n->ping_seq++;
	pattern(n->whole, (len + 7) & ~7, n->ping_seq);
	c = ip_frame(n, t, n->gw_mac, ip, P_ICMP, 8 + len);
	put32(c, 0x08000000);
	put16(c + 4, n->ping_id);
	put16(c + 6, n->ping_seq);
	*(u16 *)(c + 2) = ~fold(sum_of(n->whole, len, sum_of(c, 8, 0)));
	net_send_copy(n, t, ETH + 28, n->whole, len);
	net_flush(n);
	while (n->pings == was && !n->broken) {
		net_step(n);
		if (us_of(rdtsc() - t0) > ms * 1000ul)
			break;
	}
	*us = us_of(rdtsc() - t0);
	return n->pings != was && n->ping_len == len && n->ping_from == ip;
}
