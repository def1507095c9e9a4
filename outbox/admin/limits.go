package admin

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits bound what clients can take. Zero values take the defaults.
type Limits struct {
	// PerToken is the requests a second of one token, TokenBurst how many may come at once. Default 20 and 40.
	PerToken   float64
	TokenBurst int
	// FailedLogins is the failed logins a second of one address, FailedBurst how many may come at once; what is
	// beyond gets 429. A valid token is never kept out by them. Default 0.2 and 10.
	FailedLogins float64
	FailedBurst  int
	// Requests is how many may be worked on at a time. Default 32.
	Requests int
	// Timeout is the time for an answer, ApplyTimeout that for what goes through all that there is: a replay, a rebase, a
	// reconciliation, a check of the audit log. Default 30 s and 30 min.
	Timeout, ApplyTimeout time.Duration
}

func (l Limits) withDefaults() Limits {
	def := Limits{PerToken: 20, TokenBurst: 40, FailedLogins: 0.2, FailedBurst: 10, Requests: 32, Timeout: 30 * time.Second, ApplyTimeout: 30 * time.Minute}
	if l.PerToken > 0 {
		def.PerToken = l.PerToken
	}
	if l.TokenBurst > 0 {
		def.TokenBurst = l.TokenBurst
	}
	if l.FailedLogins > 0 {
		def.FailedLogins = l.FailedLogins
	}
	if l.FailedBurst > 0 {
		def.FailedBurst = l.FailedBurst
	}
	if l.Requests > 0 {
		def.Requests = l.Requests
	}
	if l.Timeout > 0 {
		def.Timeout = l.Timeout
	}
	if l.ApplyTimeout > 0 {
		def.ApplyTimeout = l.ApplyTimeout
	}
	return def
}

// limiters hold a limiter for each key, and forget the one that was not asked for longest when there are too many.
type limiters struct {
	limit rate.Limit
	burst int
	most  int

	mu    sync.Mutex
	byKey map[string]*list.Element
	order list.List // of *limited, newest first
}

type limited struct {
	key     string
	limiter *rate.Limiter
}

func newLimiters(perSecond float64, burst, most int) *limiters {
	return &limiters{limit: rate.Limit(perSecond), burst: burst, most: most, byKey: map[string]*list.Element{}}
}

// allow takes one of key's events, or says when there will be one.
func (l *limiters) allow(key string) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	element, known := l.byKey[key]
	if known {
		l.order.MoveToFront(element)
	} else {
		if l.order.Len() >= l.most {
			oldest := l.order.Back()
			delete(l.byKey, l.order.Remove(oldest).(*limited).key)
		}
		element = l.order.PushFront(&limited{key: key, limiter: rate.NewLimiter(l.limit, l.burst)})
		l.byKey[key] = element
	}
	reservation := element.Value.(*limited).limiter.Reserve()
	if wait = reservation.Delay(); wait > 0 {
		reservation.Cancel()
		return wait, false
	}
	return 0, true
}

// addressKey is the client's network: an IPv4 address, or the /64 that one IPv6 client can move in.
func addressKey(remote string) string {
	address, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	ip := address.Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	prefix, err := ip.Prefix(bits)
	if err != nil {
		return ip.String()
	}
	return prefix.String()
}
