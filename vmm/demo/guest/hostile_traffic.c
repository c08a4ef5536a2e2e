// What a guest may say on a network to harm it, and frames that change while
// they are read. Nothing goes further than the gateway and TEST-NET-1 (RFC
// 5737), which exists nowhere; option flood= names another address.

#include "hostile.h"
#include "net.h"

#define FRAMES 20000
#define PORTS 65535
#define FLOOD_MS 1000	// where a guest is slow no flood lasts longer, or what ms= says

static u32 away(void)
{
	static u32 ip;
	const char *s = opt("flood");
	u64 v;

	if (ip)
		return ip;
	ip = IP4(192, 0, 2, 1);
	if (s && number(&s, &v) && v < 256) {
		ip = v;
		for (u32 i = 0; i < 3 && *s == '.'; i++) {
			s++;
			if (number(&s, &v))
				ip = ip << 8 | (v & 255);
		}
	}
	return ip;
}

static u32 target(struct net *n, u64 i) { return i & 1 ? away() : n->hop; }

static u64 flood_from;
static u32 flood_frames;

// more counts a frame of a flood, lets answers in, and says when it is enough.
static int more(struct net *n, u32 i, u32 count)
{
	if (!i)
		flood_from = rdtsc();
	flood_frames = i;
	if (i % 32 == 31) {
		net_flush(n);
		net_poll(n);
	}
	return i < count && !n->broken && (i % 32 || us_of(rdtsc() - flood_from) < opt_number("ms", FLOOD_MS) * 1000);
}

// ends gives the verdict of a flood, once all of it has been taken.
static u32 ends(struct net *n)
{
	net_drain(n);
	net_poll(n);
	say("demo: time flood us=%lu frames=%u\n", us_of(rdtsc() - flood_from), flood_frames);
	if (reg(n->d, R_STATUS) & S_NEEDS_RESET)
		return O_RESET;
	return n->broken ? O_SILENT : O_LIVES;
}

// from patches where an IPv4 frame comes from and which fragment it is.
static void from(struct tx *t, u32 src, u16 id, u16 fragment)
{
	u8 *ip = t->frame + ETH;

	put32(ip + 12, src);
	put16(ip + 4, id);
	put16(ip + 6, fragment);
	put16(ip + 10, 0);
	*(u16 *)(ip + 10) = ~fold(sum_of(ip, 20, 0));
}

static u32 flows(struct net *n)
{
	for (u32 i = 0; more(n, i, PORTS); i++) {
		udp_send(n, n->gw_mac, target(n, i), 1024 + i % 50000, i + 1, &i, 4);
	}
	return ends(n);
}

// tcp_head sends a bare TCP header.
static void tcp_head(struct net *n, u32 src, u32 dst, u16 sport, u16 dport, u32 seq, u8 flags)
{
	struct tx *t = net_slot(n);
	u8 *h;

	if (!t)
		return;
	h = ip_frame(n, t, n->gw_mac, dst, 6, 20);
	from(t, src, sport, 0x4000);
	put16(h, sport);
	put16(h + 2, dport);
	put32(h + 4, seq);
	put32(h + 8, seq * 3);
	put32(h + 12, 0x50000000 | (u32)flags << 16 | 0xffff);
	put32(h + 16, 0);
	l4_sum(n, t, 20, 16, NULL, 0);
	net_send(n, t, ETH + 40, NULL, 0);
}

static u32 syns(struct net *n)
{
	for (u32 i = 0; more(n, i, PORTS); i++) {
		tcp_head(n, n->ip, target(n, i), i + 1, i & 2 ? 80 : i * 7, i, 2);
	}
	return ends(n);
}

static u32 tcp_flags(struct net *n)
{
	u64 seed = opt_number("seed", 1), x;

	for (u32 i = 0; more(n, i, FRAMES); i++) {
		x = rnd(&seed);
		tcp_head(n, n->ip, target(n, x >> 1), x >> 8 & 7, x >> 16 & 7, x >> 32, x >> 24);
	}
	return ends(n);
}

static u32 spoofed(struct net *n)
{
	u64 seed = opt_number("seed", 1), x;
	u32 own = n->ip;
	const u32 sources[] = { 0, ~0u, IP4(127, 0, 0, 1), IP4(224, 0, 0, 1), n->hop, own | 0xff, own + 1, IP4(8, 8, 8, 8), n->dns };
	u8 mac[6];

	memcpy(mac, n->mac, 6);
	for (u32 i = 0; more(n, i, FRAMES); i++) {
		x = rnd(&seed);
		n->ip = x & 1 ? sources[(x >> 8) % COUNT(sources)] : (u32)(x >> 32);
		n->mac[5] = x >> 16;
		n->mac[0] = x >> 24 & 3;
		if (x & 2)
			udp_send(n, n->gw_mac, target(n, i), x >> 40, 1 + (x >> 48), &x, 8);
		else
			tcp_head(n, n->ip, target(n, i), x >> 40, x >> 48, x, 2);
	}
	n->ip = own;
	memcpy(n->mac, mac, 6);
	return ends(n);
}

static u32 arp_spoof(struct net *n)
{
	u32 own = n->ip;
	u8 mac[6];

	memcpy(mac, n->mac, 6);
	for (u32 i = 0; more(n, i, FRAMES); i++) {
		n->ip = i % 4 == 0 ? n->hop : i % 4 == 1 ? n->dns : i % 4 == 2 ? (own & n->mask) | (i & 0xff) : i * 0x01010101;
		n->mac[4] = i >> 8;
		n->mac[5] = i;
		arp_send(n, i & 1 ? broadcast : n->gw_mac, i & 2 ? 2 : 1, i & 4 ? n->ip : n->hop, i & 8 ? n->mac : broadcast);
	}
	n->ip = own;
	memcpy(n->mac, mac, 6);
	return ends(n);
}

// Fragments that never make a whole, that overlap, and that end beyond 64 KiB.
static u32 fragments(struct net *n)
{
	u64 seed = opt_number("seed", 1), x;

	for (u32 i = 0; more(n, i, FRAMES); i++) {
		struct tx *t = net_slot(n);
		u32 len = 8 * (1 + i % 160), offset;

		if (!t)
			break;
		x = rnd(&seed);
		offset = i % 3 == 0 ? 0 : i % 3 == 1 ? x % 200 : x & 0x1fff;
		ip_frame(n, t, n->gw_mac, target(n, i >> 3), i & 1 ? 17 : 1, len);
		from(t, n->ip, i % 5 == 0 ? i : x >> 40 & 15, 0x2000 | offset);
		if (i % 97 == 0)
			from(t, n->ip, x >> 40 & 15, 0x1fff);
		net_send(n, t, ETH + 20, n->rxmem, len);
	}
	return ends(n);
}

// Frames at random, behind headers that look real so that they are looked into.
// Where they are bound is never random.
static u32 garbage(struct net *n)
{
	static const u16 types[] = { 0x0800, 0x0806, 0x86dd, 0x8100, 0x88a8, 5, 1500, 0xffff };
	u64 seed = opt_number("seed", 1), x;
	u8 *f, *ip;

	for (u32 i = 0; more(n, i, FRAMES); i++) {
		struct tx *t = net_slot(n);
		u32 len, at;

		if (!t)
			break;
		x = rnd(&seed);
		f = t->frame;
		ip = f + ETH;
		len = ETH + (x & 1 ? x >> 8 & 63 : 100);
		if (len > sizeof t->frame)
			len = sizeof t->frame;
		for (at = 0; at + 8 <= sizeof t->frame; at += 8)
			*(u64 *)(f + at) = rnd(&seed);
		memcpy(f, x & 2 ? n->gw_mac : broadcast, 6);
		memcpy(f + 6, n->mac, 6);
		put16(f + 12, types[(x >> 16) % COUNT(types)]);
		put32(ip + 16, target(n, x >> 2));
		if (get16(f + 12) == 0x0800) {
			ip[0] = x & 4 ? 0x45 : x >> 24;
			ip[9] = x & 8 ? (u8)"\1\2\6\21"[x >> 32 & 3] : (u8)(x >> 32);
			if (x & 16)
				put16(ip + 2, len - ETH);
			if (x & 32)
				put32(ip + 12, n->ip);
			put16(ip + 6, x & 64 ? 0 : x >> 40);
			put16(ip + 10, 0);
			*(u16 *)(ip + 10) = ~fold(sum_of(ip, 20, 0));
		} else if (get16(f + 12) == 0x86dd) {
			ip[0] = 0x60;
			put16(ip + 4, x & 16 ? len - ETH - 40 : x >> 40);
			ip[6] = x & 8 ? (u8)"\0\53\54\72"[x >> 32 & 3] : (u8)(x >> 32);	// hop-by-hop, routing, fragment, ICMPv6
			memcpy(ip + 8, "\xfe\x80\0\0\0\0\0\0", 8);
			memcpy(ip + 24, x & 64 ? "\xff\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\1" : "\x20\1\xd\xb8\0\0\0\0\0\0\0\0\0\0\0\1", 16);
		} else if (get16(f + 12) == 0x0806 && x & 4)
			memcpy(ip, "\0\1\10\0\6\4\0\1", 8);
		net_send(n, t, len, NULL, 0);
	}
	return ends(n);
}

// Requests to the network's own services.
static u32 services(struct net *n)
{
	u64 seed = opt_number("seed", 1), x;
	u8 m[300];

	for (u32 i = 0; more(n, i, FRAMES); i++) {
		for (u32 k = 0; k + 8 <= sizeof m; k += 8)
			*(u64 *)(m + k) = rnd(&seed);
		x = rnd(&seed);
		if (x & 1) {	// DNS: mostly questions, with a name that ends nowhere or in a pointer
			put32(m + 2, 0x01000001);
			put32(m + 6, 0);
			put16(m + 10, x >> 8 & 1);
			m[12] = x & 2 ? 0xc0 : x >> 16 & 63;
			m[13] = x & 4 ? 12 : m[13];
			udp_send(n, n->gw_mac, n->dns ? n->dns : n->hop, 53, 1024 + (x >> 40), m, 12 + (x >> 24 & 63));
		} else {	// DHCP, of ever new hardware addresses
			put32(m, 0x01010600);
			put32(m + 236, 0x63825363);
			m[240] = 53;
			m[241] = x & 8 ? 1 : x >> 16;
			m[242] = 1 + (x >> 32 & 7);
			udp_send(n, x & 2 ? broadcast : n->gw_mac, x & 2 ? ~0u : n->hop, 67, 68, m, x & 16 ? sizeof m : x >> 48 & 255);
		}
	}
	return ends(n);
}

// Another CPU rewrites what the device is reading.
#define ROUNDS 300
static struct net *victim;
static volatile u32 stop;

static void flip(volatile u64 *p, u64 a, u64 b)
{
	for (u32 i = 0; !stop; i++) {
		*p = i & 1 ? b : a;
		barrier();
	}
	*p = a;
}

#define WORD(len, flags, next) ((u64)(len) | (u64)(flags) << 32 | (u64)(next) << 48)

static void flip_tx_address(u32 cpu) { (void)cpu; flip((volatile u64 *)&victim->tx->desc[0].addr, (u64)&victim->slots[0].h, 1ul << 45); }
static void flip_tx_length(u32 cpu) { (void)cpu; flip((volatile u64 *)&victim->tx->desc[0].len, WORD(100, 0, 0), WORD(0xfffffff0, D_NEXT, 0)); }
static void flip_header(u32 cpu) { (void)cpu; flip((volatile u64 *)&victim->slots[0].h, 0, 0xffff000100360101); }
// The version, header length and total length of the packet; and its type.
static void flip_packet(u32 cpu) { volatile u64 *p = (volatile u64 *)(victim->slots[0].frame + ETH); (void)cpu; flip(p, *p, 0xff1fffffffff004f); }
static void flip_type(u32 cpu) { volatile u64 *p = (volatile u64 *)(victim->slots[0].frame + 8); (void)cpu; flip(p, *p, (u32)*p | 0x0060dd86ul << 32); }

static u32 flipping(struct net *n, job todo)
{
	u32 o = O_SILENT, base;

	if (!smp_start())
		return O_SKIP;
	victim = n;
	stop = 0;
	memset(n->slots[0].frame, 0, 88);
	ip_frame(n, &n->slots[0], n->gw_mac, n->hop, 17, 66);
	n->slots[0].h = (struct net_hdr){ 0 };
	n->tx->desc[0] = (struct desc){ (u64)&n->slots[0].h, 100, 0, 0 };
	ap_run(1, todo);
	for (base = 0; base < ROUNDS; base++) {
		vq_put(n->tx, 0);
		barrier();
		n->tx->avail->idx = n->tx->avail_idx;
		vq_want_irq(n->tx);
		set(n->d, R_NOTIFY, 1);
		o = net_outcome(n, n->tx, WAIT_MS);
		if (o != O_USED)
			break;
	}
	stop = 1;
	ap_wait(1);
	return o;
}

static u32 race_tx_address(struct net *n) { return flipping(n, flip_tx_address); }
static u32 race_tx_length(struct net *n) { return flipping(n, flip_tx_length); }
static u32 race_header(struct net *n) { return flipping(n, flip_header); }
static u32 race_packet(struct net *n) { return flipping(n, flip_packet); }
static u32 race_type(struct net *n) { return flipping(n, flip_type); }

// Reset, or the queues taken away, while frames come and go: afterwards nothing
// may be written.
#define WATCHED (1 << 16)

static u32 in_flight(struct net *n, int by_reset)
{
	struct vdev *d = n->d;
	u32 ip = n->ip, hop = n->hop;
	u8 mac[6];

	memcpy(mac, n->gw_mac, 6);
	for (u32 round = 0; round < 20; round++) {
		for (u32 i = 0; i < 40; i++) {
			struct tx *t = net_slot(n);
			u8 *c;

			if (!t)
				return O_BAD;
			c = ip_frame(n, t, mac, hop, 1, 64);
			memset(c, 0, 64);
			put32(c, 0x08000000);
			*(u16 *)(c + 2) = ~fold(sum_of(c, 64, 0));
			net_send(n, t, ETH + 84, NULL, 0);
		}
		net_flush(n);
		delay_us(round * 10);
		if (!by_reset)
			for (u32 i = 0; i < 2; i++) {
				set(d, R_QUEUE_SEL, i);
				set(d, R_QUEUE_READY, 0);
			}
		virtio_reset(d);
		memset(n->rxmem, 0x5a, WATCHED);
		memset((void *)n->rx->desc, 0x5a, vq_bytes(NET_RING) & ~7ul);
		delay_us(1000);
		if (!same(n->rxmem, n->rxmem + 8, WATCHED - 8) || !same((void *)n->rx->desc, (u8 *)n->rx->desc + 8, (vq_bytes(NET_RING) & ~7ul) - 8)) {
			fail("hostile", "round %u: the device wrote to memory after its reset", round);
			return O_BAD;
		}
		if (!net_init(n, d, net_features(), 0))
			return O_BAD;
		n->ip = ip;
		n->hop = hop;
	}
	return O_LIVES;
}

static u32 reset_in_flight(struct net *n) { return in_flight(n, 1); }
static u32 unready_in_flight(struct net *n) { return in_flight(n, 0); }

const struct hostile_net hostile_traffic[] = {
	{ "net-flows", flows, O_LIVES, 0, 0 },
	{ "net-syn-flood", syns, O_LIVES, 0, 0 },
	{ "net-tcp-flags", tcp_flags, O_LIVES, 0, 0 },
	{ "net-spoofed", spoofed, O_LIVES, 0, 0 },
	{ "net-arp-spoof", arp_spoof, O_LIVES, 0, 0 },
	{ "net-fragments", fragments, O_LIVES, 0, 0 },
	{ "net-garbage", garbage, O_LIVES, 0, 0 },
	{ "net-services", services, O_LIVES, 0, 0 },
	{ "net-flip-address", race_tx_address, HANDLED, F_INDIRECT, 0 },
	{ "net-flip-length", race_tx_length, HANDLED, F_INDIRECT, 0 },
	{ "net-flip-header", race_header, HANDLED, 0, 0 },
	{ "net-flip-packet", race_packet, HANDLED, 0, 0 },
	{ "net-flip-type", race_type, HANDLED, 0, 0 },
	{ "net-reset-in-flight", reset_in_flight, O_LIVES, 0, 0 },
	{ "net-unready-in-flight", unready_in_flight, O_LIVES, 0, 0 },
	{ NULL, NULL, 0, 0, 0 },
};
