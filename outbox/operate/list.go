package operate

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// listed is where a page of a listing ended.
type listed struct {
	Database string `json:"d"`
	Side     Side   `json:"s"`
	Seq      int64  `json:"q"`
}

// List gives stuck messages by database, outbox before inbox, in the order in which they got stuck. Next is the After of
// the page that follows, empty at the end. Databases that do not answer are an error beside what the others have.
func (o *Operator) List(ctx context.Context, f Filter, page Page) (list []Stuck, next string, err error) {
	var after listed
	limit, err := page.limit()
	if err := errors.Join(err, f.check(), readToken(page.After, &after)); err != nil {
		return nil, "", err
	}
	places, err := o.places(ctx, f)
	passed := after.Database == ""
	if !passed && !slices.ContainsFunc(places, func(p place) bool { return p.name == after.Database && p.side == after.Side }) {
		if err != nil { // the database may not answer
			return nil, "", err
		}
		return nil, "", fmt.Errorf("%w: after is of another listing: this one has no %s of a database %q", ErrInvalid, after.Side, after.Database)
	}
	errs := []error{err}
	list = []Stuck{}
	for _, p := range places {
		here := p.name == after.Database && p.side == after.Side
		if passed = passed || here; !passed {
			continue
		}
		q := matching(f)
		if here {
			q.and("r.seq > ?", after.Seq)
		}
		rows, err := p.list(ctx, q, limit+1-len(list))
		errs = append(errs, err)
		for _, r := range rows {
			list = append(list, p.stuck(r))
		}
		if len(list) > limit {
			list = list[:limit]
			last := list[limit-1]
			return list, token(listed{last.Database, last.Side, last.Seq}), errors.Join(errs...)
		}
	}
	return list, "", errors.Join(errs...)
}
