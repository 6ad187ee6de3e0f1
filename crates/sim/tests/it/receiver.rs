//! The receiver is a judge, so it is judged first: by the client that delivers.

use std::sync::Arc;
use std::time::Duration;

use domain::time::Clock;
use outside::clock::SystemClock;
use outside::http::{
    AddressPolicy, BodyEnd, Client, ClientOptions, Http, HttpError, HttpErrorKind, Phase, Request, Response,
};
use sim::receiver::{Behaviour, InvalidSecret, Receiver, Signature};
use standardwebhooks::Webhook;

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

struct Sender {
    client: Client,
    receiver: Receiver,
}

impl Sender {
    async fn new() -> Self {
        let clock = Arc::new(SystemClock::new());
        let receiver = Receiver::start(clock.clone()).await.unwrap();
        let client = Client::new(ClientOptions::new(AddressPolicy::unrestricted()), clock).unwrap();
        Self { client, receiver }
    }

    async fn send(
        &self,
        path: &str,
        id: &str,
        headers: &[(&'static str, String)],
    ) -> Result<Response, HttpError> {
        let mut request =
            Request::post(self.receiver.url(path).parse().unwrap(), format!("{{\"id\":\"{id}\"}}"));
        request.deadline = Duration::from_millis(300);
        request.headers.insert("webhook-id", id.parse().unwrap());
        request.headers.insert("idempotency-key", format!("\"{id}\"").parse().unwrap());
        for (name, value) in headers {
            request.headers.insert(*name, value.parse().unwrap());
        }
        self.client.send(request).await
    }

    async fn status(&self, path: &str, id: &str) -> u16 {
        self.send(path, id, &[]).await.unwrap().status.as_u16()
    }
}

#[tokio::test]
async fn remembers_what_came() {
    let sender = Sender::new().await;
    sender.receiver.behave("/flaky", Behaviour::FailFirst { times: 2, status: 503 });
    let mut statuses = Vec::new();
    for id in ["evt_1", "evt_2", "evt_1", "evt_1", "evt_1"] {
        statuses.push(sender.status("/flaky", id).await);
    }
    assert_eq!(statuses, [503, 503, 503, 200, 200]);
    let arrivals = sender.receiver.arrivals();
    assert_eq!(
        arrivals.iter().map(|arrival| arrival.id.as_str()).collect::<Vec<_>>(),
        ["evt_1", "evt_2", "evt_1", "evt_1", "evt_1"]
    );
    assert_eq!(arrivals[0].idempotency_key, "\"evt_1\"");
    assert_eq!(&arrivals[1].body[..], b"{\"id\":\"evt_2\"}");
    assert!(arrivals.windows(2).all(|pair| pair[0].monotonic <= pair[1].monotonic));
    let messages = sender.receiver.messages();
    let first = &messages[&("/flaky".to_owned(), "evt_1".to_owned())];
    assert_eq!((first.count, first.accepted, first.same_body), (4, 2, true));
    assert_eq!(sender.receiver.accepted(), 2);
    sender.receiver.until_accepted(2).await;
    sender.receiver.forget();
    assert!(sender.receiver.arrivals().is_empty() && sender.receiver.accepted() == 0);
}

#[tokio::test]
async fn judges_signatures() {
    let sender = Sender::new().await;
    assert_eq!(sender.receiver.trust("/hook", "whsec_not base64!"), Err(InvalidSecret));
    sender.send("/hook", "evt_0", &[]).await.unwrap();
    sender.receiver.trust("/hook", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
    sender.receiver.trust("/hook", SECRET).unwrap();
    let now = SystemClock::new().now().as_seconds();
    let sign = |id: &str, at: i64| {
        Webhook::new(SECRET).unwrap().sign(id, at, format!("{{\"id\":\"{id}\"}}").as_bytes()).unwrap()
    };
    let cases = [
        ("evt_1", now, sign("evt_1", now)),
        ("evt_2", now, format!("v1a,xyz v1,AAAA {}", sign("evt_2", now))),
        ("evt_3", now, sign("evt_4", now)),
        ("evt_5", now + 1, sign("evt_5", now)),
        ("evt_6", now - 1000, sign("evt_6", now - 1000)),
        ("evt_7", now + 1000, sign("evt_7", now + 1000)),
        ("evt_8", now, String::new()),
    ];
    for (id, at, signature) in cases {
        let headers = [("webhook-timestamp", at.to_string()), ("webhook-signature", signature)];
        sender.send("/hook", id, &headers).await.unwrap();
    }
    sender.send("/hook", "evt_9", &[]).await.unwrap();
    let judged: Vec<Signature> =
        sender.receiver.arrivals().into_iter().map(|arrival| arrival.signature).collect();
    let expected = [
        Signature::Unchecked,
        Signature::Valid,
        Signature::Valid,
        Signature::Invalid("no signature fits"),
        Signature::Invalid("no signature fits"),
        Signature::Invalid("the timestamp is too far from now"),
        Signature::Invalid("the timestamp is too far from now"),
        Signature::Invalid("no signature fits"),
        Signature::Invalid("a header is missing"),
    ];
    assert_eq!(judged, expected);
}

#[tokio::test]
async fn behaves_as_told() {
    let sender = Sender::new().await;
    let behave = |path, behaviour| sender.receiver.behave(path, behaviour);
    behave("/429", Behaviour::Throttle("1e400".to_owned()));
    behave("/302", Behaviour::Redirect("http://169.254.169.254/".to_owned()));
    behave("/410", Behaviour::Gone);
    behave("/599", Behaviour::Answer(599));
    behave("/flap", Behaviour::Flap);
    behave("/later", Behaviour::AcceptAfter(Duration::from_millis(50)));
    behave("/drip", Behaviour::DripBody(Duration::from_millis(5)));
    behave("/endless", Behaviour::EndlessBody);
    behave("/silent", Behaviour::Silence);
    behave("/hang-up", Behaviour::HangUp);
    let throttled = sender.send("/429", "a", &[]).await.unwrap();
    assert_eq!(
        (throttled.status.as_u16(), &throttled.headers["retry-after"]),
        (429, &"1e400".parse().unwrap())
    );
    let redirected = sender.send("/302", "a", &[]).await.unwrap();
    assert_eq!(
        (redirected.status.as_u16(), &redirected.headers["location"]),
        (302, &"http://169.254.169.254/".parse().unwrap())
    );
    for (path, status) in
        [("/410", 410), ("/599", 599), ("/flap", 500), ("/flap", 200), ("/flap", 500), ("/plain", 200)]
    {
        assert_eq!(sender.status(path, "a").await, status, "{path}");
    }
    let later = sender.send("/later", "a", &[]).await.unwrap();
    assert!(later.timings.head >= Duration::from_millis(50));
    assert_eq!(sender.send("/drip", "a", &[]).await.unwrap().ended, BodyEnd::OutOfTime);
    assert_eq!(sender.send("/endless", "a", &[]).await.unwrap().ended, BodyEnd::CutAtLimit);
    assert_eq!(sender.send("/silent", "a", &[]).await.unwrap_err().kind, HttpErrorKind::Timeout(Phase::Head));
    assert_eq!(sender.send("/hang-up", "a", &[]).await.unwrap_err().kind, HttpErrorKind::Reset);
    let unanswered = sender.receiver.arrivals().iter().filter(|arrival| arrival.status.is_none()).count();
    assert_eq!(unanswered, 2, "they came all the same");
}

#[tokio::test]
async fn goes_down_with_its_connections_and_comes_up_at_the_same_address() {
    let sender = Sender::new().await;
    for _ in 0..3 {
        assert_eq!(sender.status("/", "a").await, 200);
        sender.receiver.take_down().await;
        // The connection that was kept may break first; then nobody is there.
        let _broken = sender.send("/", "b", &[]).await.unwrap_err();
        let nobody = sender.send("/", "b", &[]).await.unwrap_err();
        assert_eq!(nobody.kind, HttpErrorKind::ConnectRefused);
        sender.receiver.bring_up().await.unwrap();
    }
    assert_eq!(sender.status("/", "a").await, 200);
}
