package contracts

import "time"

// All is one valid example of every event, of one imaginary booking: first as it is made, in the order of the flow, then
// how it may end. Each call makes fresh values.
func All() []Event {
	const (
		eventID   = "123e4567-e89b-12d3-a456-426614174000"
		bookingID = "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
		userID    = "5d2c1a74-9f3e-5b68-b0d1-2e4f6a8c9b7d"
		paymentID = "0199a1b2-c3d4-7a11-9b22-3c33d4e5f607"
	)
	published := time.Date(2026, 5, 1, 9, 0, 0, 0, time.UTC)
	asked := time.Date(2026, 5, 4, 18, 30, 0, 123456000, time.UTC)
	answered, paid, expires := asked.Add(40*time.Millisecond), asked.Add(3*time.Minute), asked.Add(15*time.Minute)
	return []Event{
		CatalogEventPublished{EventID: eventID, Name: "Symphony No. 9", StartsAt: time.Date(2026, 9, 12, 19, 30, 0, 0, time.UTC),
			Price: 2500, Currency: "EUR", Capacity: 100, Version: 1, PublishedAt: published},
		UpdateEventInventory{EventID: eventID, BookingID: bookingID, QuantityReduced: 2, RequestedAt: asked},
		SendBookingNotification{BookingID: bookingID, UserID: userID, EventID: eventID, Quantity: 2, TotalAmount: 5000,
			NotificationType: NotificationBookingCreated, RequestedAt: asked},
		PreparePaymentData{BookingID: bookingID, Amount: 5000, Currency: "EUR", UserID: userID, ExpiresAt: expires, RequestedAt: asked},
		InventoryUpdated{EventID: eventID, BookingID: bookingID, PreviousAvailableTickets: 100, CurrentAvailableTickets: 98,
			UpdateType: UpdateReserved, Version: 2, UpdatedAt: answered},
		InventoryUpdateRejected{EventID: eventID, BookingID: bookingID, QuantityRequested: 2, AvailableTickets: 1,
			Reason: RejectSoldOut, RejectedAt: answered},
		PaymentDataPrepared{BookingID: bookingID, PaymentID: paymentID, Amount: 5000, Currency: "EUR", ExpiresAt: expires,
			PaymentURL: "https://pay.example/" + paymentID, PreparedAt: answered},
		NotificationSent{BookingID: bookingID, UserID: userID, NotificationType: NotificationBookingCreated, Channel: ChannelEmail,
			Success: true, SentAt: answered},
		ReleaseEventInventory{EventID: eventID, BookingID: bookingID, Reason: UndoBookingExpired, RequestedAt: expires},
		InventoryReleased{EventID: eventID, BookingID: bookingID, QuantityReleased: 2, ReleasedAt: expires},
		CommitEventInventory{EventID: eventID, BookingID: bookingID, RequestedAt: paid},
		InventoryCommitted{EventID: eventID, BookingID: bookingID, QuantityCommitted: 2, CommittedAt: paid},
		PaymentPreparationFailed{BookingID: bookingID, Reason: PreparationCurrencyNotSupported, FailedAt: answered},
		PaymentCompleted{BookingID: bookingID, PaymentID: paymentID, Amount: 5000, Currency: "EUR", CompletedAt: paid},
		PaymentFailed{BookingID: bookingID, PaymentID: paymentID, Reason: PaymentDeclined, FailedAt: paid},
		PaymentExpired{BookingID: bookingID, PaymentID: paymentID, ExpiredAt: expires},
		CancelPayment{BookingID: bookingID, Reason: UndoBookingCancelled, RequestedAt: paid},
		PaymentCancelled{BookingID: bookingID, CancelledAt: paid},
		RefundPayment{BookingID: bookingID, PaymentID: paymentID, Reason: UndoBookingExpired, RequestedAt: expires},
		PaymentRefunded{BookingID: bookingID, PaymentID: paymentID, Amount: 5000, Currency: "EUR", RefundedAt: expires},
		BookingCreated{BookingID: bookingID, EventID: eventID, UserID: userID, Quantity: 2,
			TotalAmount: 5000, Currency: "EUR", ExpiresAt: expires, CreatedAt: asked},
		BookingConfirmed{BookingID: bookingID, EventID: eventID, UserID: userID, Quantity: 2,
			TotalAmount: 5000, Currency: "EUR", PaymentID: paymentID, ConfirmedAt: paid},
		BookingRejected{BookingID: bookingID, EventID: eventID, UserID: userID, Reason: BookingSoldOut, RejectedAt: answered},
		BookingCancelled{BookingID: bookingID, EventID: eventID, UserID: userID, CancelledAt: paid},
		BookingExpired{BookingID: bookingID, EventID: eventID, UserID: userID, ExpiredAt: expires},
		SettleBooking{BookingID: bookingID, Outcome: OutcomeConfirmed, RequestedAt: paid},
	}
}
