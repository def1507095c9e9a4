//go:build full

package joint_test

import (
	"maps"
	"slices"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/booking/life"
	"github.com/jcp/ticketwave/services/saga"
)

func init() {
	bounds = append(bounds, bound{}, bound{copies: 1}, bound{copies: 2, calm: true}, bound{retries: 1})
	maps.Copy(mutants, moreMutants)
}

var moreMutants = map[string]deciders{
	"tickets are not given back": {life.Next, changed(func(_, _ saga.Instance, _ saga.Event, commands []saga.Command) []saga.Command {
		return slices.DeleteFunc(commands, func(c saga.Command) bool { return c.Type == contracts.TypeReleaseEventInventory })
	})},
	"money that comes while a payment is cancelled is kept": {life.Next, func(d saga.Definition, i saga.Instance, e saga.Event) (saga.Instance, []saga.Command, error) {
		if e.Type == contracts.TypePaymentCompleted && i.Phase == saga.Compensating {
			return i, nil, nil
		}
		return saga.Next(d, i, e)
	}},
}
