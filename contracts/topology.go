package contracts

// TypePrefix begins every type and is left out of routing keys.
const TypePrefix = "ticketwave."

// Table says who hears what: one durable direct exchange, and for every queue and partition a quorum queue
// "<name>.<partition>" bound with "<type without prefix>.<partition>" of each of its types.
type Table struct {
	Exchange   string  `json:"exchange"`
	TypePrefix string  `json:"typePrefix"`
	Partitions int     `json:"partitions"`
	Queues     []Queue `json:"queues"`
}

// Queue is one consumer and the types that it handles.
type Queue struct {
	Name  string   `json:"name"`
	Types []string `json:"types"`
}

// Topology is the one table from which exchange, queues and bindings are declared. Every type in it has at least
// one consumer: a message that nobody is bound to would wait at its sender. The coordinator hears every answer about a
// booking, whoever leads it, for the participants cannot tell.
func Topology() Table {
	return Table{
		Exchange:   "ticketwave.events",
		TypePrefix: TypePrefix,
		Partitions: 4,
		Queues: []Queue{
			{Name: "booking", Types: []string{
				TypeInventoryUpdated, TypeInventoryUpdateRejected, TypeCatalogEventPublished,
				TypePaymentDataPrepared, TypeNotificationSent,
				TypeInventoryReleased, TypeInventoryCommitted,
				TypePaymentPreparationFailed, TypePaymentCompleted, TypePaymentFailed, TypePaymentExpired,
				TypePaymentCancelled, TypePaymentRefunded, TypeSettleBooking,
			}},
			{Name: "catalog", Types: []string{TypeUpdateEventInventory, TypeReleaseEventInventory, TypeCommitEventInventory}},
			{Name: "payment", Types: []string{TypePreparePaymentData, TypeCancelPayment, TypeRefundPayment}},
			{Name: "notification", Types: []string{TypeSendBookingNotification}},
			{Name: "saga", Types: []string{
				TypeBookingCreated, TypeBookingConfirmed, TypeBookingRejected, TypeBookingCancelled, TypeBookingExpired,
				TypeInventoryUpdated, TypeInventoryUpdateRejected, TypeInventoryReleased, TypeInventoryCommitted,
				TypePaymentDataPrepared, TypePaymentPreparationFailed, TypePaymentCompleted, TypePaymentFailed, TypePaymentExpired,
				TypePaymentCancelled, TypePaymentRefunded,
			}},
		},
	}
}
