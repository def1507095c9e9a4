package lease

import (
	"bytes"
	"slices"
	"time"

	"github.com/google/uuid"
)

// sightings remembers when each counter was last seen to move, on this process's monotonic clock.
type sightings struct {
	members map[uuid.UUID]sighting
	leases  map[int]sighting
}

type sighting struct {
	token, beat int64
	moved       time.Time
}

func newSightings() *sightings {
	return &sightings{members: map[uuid.UUID]sighting{}, leases: map[int]sighting{}}
}

// note takes in a view and forgets members that are gone.
func (s *sightings) note(v view, now time.Time) {
	members := make(map[uuid.UUID]sighting, len(v.members))
	for _, m := range v.members {
		members[m.ID] = s.members[m.ID].next(0, m.Beat, now)
	}
	s.members = members
	for _, l := range v.leases {
		s.leases[l.Partition] = s.leases[l.Partition].next(l.Token, l.Beat, now)
	}
}

func (s sighting) next(token, beat int64, now time.Time) sighting {
	if !s.moved.IsZero() && s.token == token && s.beat == beat {
		return s
	}
	return sighting{token: token, beat: beat, moved: now}
}

// live lists the members that have moved within timeout, and self, sorted.
func (s *sightings) live(v view, self uuid.UUID, timeout time.Duration) []uuid.UUID {
	live := []uuid.UUID{self}
	for _, m := range v.members {
		if m.ID != self && time.Since(s.members[m.ID].moved) < timeout {
			live = append(live, m.ID)
		}
	}
	slices.SortFunc(live, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	return live
}

func (s *sightings) stale(l leaseRow, timeout time.Duration) bool {
	return time.Since(s.leases[l.Partition].moved) >= timeout
}

func (s *sightings) memberStale(m memberRow, timeout time.Duration) bool {
	return time.Since(s.members[m.ID].moved) >= timeout
}

// quotaOf is self's share when partitions are split over the live members: the first of them, in order of
// their ids, get one more when it does not divide evenly.
func quotaOf(self uuid.UUID, live []uuid.UUID, partitions int) int {
	quota, rest := partitions/len(live), partitions%len(live)
	if slices.Index(live, self) < rest {
		quota++
	}
	return quota
}
