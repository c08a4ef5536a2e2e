// TCP (RFC 9293) enough for a link that loses little.
#ifndef TCP_H
#define TCP_H

#include "net.h"
#include "blk.h"

enum { P_TCP = 6 };
enum { TCP_CLOSED, TCP_LISTEN, TCP_SYN_SENT, TCP_SYN_RCVD, TCP_OPEN, TCP_REFUSED, TCP_RESET, TCP_DEAD };

// A source repeats itself after `period` bytes; it holds `slack` bytes more,
// so that a segment need not end where it begins anew.
struct source { const u8 *base; u32 period, slack; };

struct tcp {
	u32 state, rip;
	u16 lport, rport;
	u8 mac[6];
	u32 iss, irs;			// first numbers; byte k of a stream is numbered iss+1+k
	u64 una, nxt, max;		// ours: acknowledged, next to send, sent; a FIN counts as a byte
	u64 offered;			// bytes of the source that may go
	int fin, fin_acked;		// ours follows them; it has arrived
	u64 rcv;			// theirs
	int rcv_fin;
	u64 snd_wnd, cwnd, ssthresh, rcv_wnd;
	u32 snd_scale, rcv_scale, mss, dups, ack_now, probe;
	u64 due, rto;			// TSC when to send again, 0: nothing is under way; and after how long
	u32 tries, resent, unordered;
	struct source src;
	void (*take)(struct tcp *c, const u8 *p, u32 n);	// their bytes, in order
	// The application's own.
	u64 got, sum, word, t0;
	char line[72];
	u32 nline, role;
	u8 *ring;
};

void tcp_input(struct net *n, u32 src, u8 *p, u32 len);
void tcp_batch(struct net *n);		// acknowledges, sends what may go, sends again what is due
void tcp_open(struct net *n, struct tcp *c, u32 ip, u16 port);
void tcp_listen(struct tcp *c, u16 port);
void tcp_abort(struct net *n, struct tcp *c);	// RST
static inline int tcp_over(const struct tcp *c) { return c->state >= TCP_REFUSED || (c->rcv_fin && c->fin_acked && !c->ack_now); }
const char *tcp_state(const struct tcp *c);

#endif
