//! The rate limiter by itself.

use std::time::{Duration, SystemTime};

use tidegate::{
    Call, Dimension, Error, Event, LimitType, Priority, RateLimitConfig, RateLimiter, Scope, Tidegate, Usage,
};
use tokio::time::{Instant, advance, timeout};

fn limiter() -> RateLimiter {
    let config =
        RateLimitConfig::default().with_requests_per_minute(10).with_tokens_per_minute(1000).with_requests_per_day(100);
    RateLimiter::new(config)
}

fn tokens_only(tokens: u64) -> RateLimiter {
    RateLimiter::new(RateLimitConfig::default().with_tokens_per_minute(tokens))
}

fn call() -> Call {
    Call::new("gpt-3.5-turbo").with_id("test")
}

/// A call that was made and used what it said.
async fn use_up(limiter: &RateLimiter, call: &Call, tokens: u64) {
    let mut reservation = limiter.reserve(call).await.unwrap();
    reservation.sent();
    reservation.settle(Usage::new(tokens, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_within_the_limits_is_allowed() {
    let checked = limiter().check(&call().with_estimated_tokens(100));
    assert!(checked.allowed);
    assert_eq!(checked.wait_time, Some(Duration::ZERO));
    assert_eq!((checked.remaining_requests, checked.remaining_tokens), (Some(10), Some(1000)));
    assert_eq!((checked.limit_type, checked.limit), (LimitType::None, None));
}

#[tokio::test(start_paused = true)]
async fn ten_recorded_uses_exhaust_a_limit_of_ten() {
    let limiter = limiter();
    for _ in 0..10 {
        assert!(limiter.check(&call()).allowed);
        limiter.record(&call());
    }
    let checked = limiter.check(&call());
    assert!(!checked.allowed);
    assert_eq!((checked.remaining_requests, checked.limit_type), (Some(0), LimitType::Requests));
    let wait = checked.wait_time.unwrap();
    assert!(wait > Duration::from_secs(59) && wait <= Duration::from_millis(60_500), "{wait:?}");
    assert_eq!(limiter.wait_time(&call()), Some(wait));
    let limit = checked.limit.unwrap();
    assert_eq!(limit.path(), "rate_limit/-/-/gpt-3.5-turbo/requests_per_minute");
    assert_eq!((limit.allowed, limit.used, limit.requested), (10, 10, 1));
    assert!(checked.reset_at > SystemTime::now());
}

#[tokio::test(start_paused = true)]
async fn five_rapid_requests_of_one_user_all_go_and_the_sixth_waits_its_turn() {
    let limiter = RateLimiter::new(RateLimitConfig::default().with_requests_per_minute(5));
    let call = call().with_user("test-user");
    let started = Instant::now();
    for _ in 0..5 {
        use_up(&limiter, &call, 0).await;
    }
    assert_eq!(started.elapsed(), Duration::ZERO);
    use_up(&limiter, &call, 0).await;
    assert!(started.elapsed() >= Duration::from_secs(59), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_call_is_refused_until_exactly_its_wait_and_admitted_at_it() {
    let limiter = limiter();
    (0..10).for_each(|_| limiter.record(&call()));
    let wait = limiter.wait_time(&call()).unwrap();
    advance(wait - Duration::from_millis(1)).await;
    let refused = limiter.try_reserve(&call()).unwrap_err();
    assert_eq!(refused.retry_after(), limiter.wait_time(&call()));
    advance(Duration::from_millis(1)).await;
    assert!(limiter.try_reserve(&call()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn of_any_number_that_come_at_once_only_as_many_pass_as_the_limit_allows() {
    let limiter = limiter();
    let (sender, mut passed) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..100 {
        let (limiter, sender) = (limiter.clone(), sender.clone());
        tokio::spawn(async move {
            let impatient = call().with_max_wait(Duration::ZERO);
            sender.send(limiter.reserve(&impatient).await.map(drop_sent).is_ok()).unwrap();
        });
    }
    drop(sender);
    let mut admitted = 0;
    while let Some(is_admitted) = passed.recv().await {
        admitted += u32::from(is_admitted);
    }
    assert_eq!(admitted, 10);
}

fn drop_sent(mut reservation: tidegate::Reservation) {
    reservation.sent();
}

#[tokio::test(start_paused = true)]
async fn a_call_takes_from_every_limit_or_from_none() {
    let team = RateLimitConfig::default().named("team").per([Scope::Organization]).with_requests_per_minute(5);
    let user = RateLimitConfig::default().named("user").per([Scope::User]).with_requests_per_minute(2);
    let limiter = RateLimiter::with_limits([team, user]);
    let of = |user: &str| call().with_organization("acme").with_user(user);
    for _ in 0..2 {
        use_up(&limiter, &of("anna"), 0).await;
    }
    for _ in 0..20 {
        let Err(Error::Refused { limit, .. }) = limiter.try_reserve(&of("anna")) else { panic!("two are two") };
        assert_eq!(limit.path(), "user/anna/requests_per_minute");
    }
    assert_eq!(limiter.check(&of("bert")).remaining_requests, Some(2), "refusals of one burn nothing of the others");
    for user in ["bert", "bert", "cleo"] {
        limiter.try_reserve(&of(user)).unwrap().settle(Usage::default());
    }
    assert!(limiter.try_reserve(&of("dora")).is_err(), "the team's five are gone");
}

#[tokio::test(start_paused = true)]
async fn limits_to_which_nobody_gave_a_name_all_hold() {
    let limits = || {
        let [requests, tokens, day] = [(); 3].map(|()| RateLimitConfig::default());
        [requests.with_requests_per_minute(2), tokens.with_tokens_per_minute(100), day.with_requests_per_day(9)]
    };
    let [requests, tokens, day] = limits();
    let whole = Tidegate::builder().limit(requests).limit(tokens).limit(day).build();
    for limiter in [RateLimiter::with_limits(limits()), whole.limiter()] {
        let refused_by = |tokens| match limiter.try_reserve(&call().with_estimated_tokens(tokens)) {
            Err(Error::Refused { limit, .. } | Error::TooLarge { limit, .. }) => limit.limit.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused_by(101), "rate_limit_2");
        for _ in 0..2 {
            limiter.try_reserve(&call().with_estimated_tokens(1)).unwrap().settle(Usage::new(1, 0));
        }
        assert_eq!(refused_by(1), "rate_limit");
        let info = limiter.info();
        assert_eq!((info.requests_in_last_minute, info.tokens_in_last_minute, info.requests_today), (2, 2, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_used_comes_back_and_what_was_used_beyond_is_owed() {
    let limiter = tokens_only(1000);
    let large = call().with_tokens(100, 800);
    use_up(&limiter, &large, 150).await;
    assert_eq!(limiter.check(&large).remaining_tokens, Some(850));
    use_up(&limiter, &call().with_estimated_tokens(10), 2850).await;
    let checked = limiter.check(&call().with_estimated_tokens(1));
    assert_eq!((checked.allowed, checked.remaining_tokens), (false, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn dropped_before_it_was_sent_all_comes_back_and_dropped_after_nothing_does() {
    let limiter = limiter();
    let call = call().with_estimated_tokens(300);
    drop(limiter.reserve(&call).await.unwrap());
    let checked = limiter.check(&call);
    assert_eq!((checked.remaining_requests, checked.remaining_tokens), (Some(10), Some(1000)));
    drop_sent(limiter.reserve(&call).await.unwrap());
    let checked = limiter.check(&call);
    assert_eq!((checked.remaining_requests, checked.remaining_tokens), (Some(9), Some(700)));
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_and_leaves_holds_nobody_up() {
    let limiter = RateLimiter::new(RateLimitConfig::default().with(Dimension::MaxInFlight, 1));
    let held = limiter.reserve(&call()).await.unwrap();
    let impatient = call();
    assert!(timeout(Duration::from_secs(1), limiter.reserve(&impatient)).await.is_err());
    drop(held);
    assert!(limiter.try_reserve(&call()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_could_not_go_in_time_is_told_at_once() {
    let limiter = limiter();
    (0..10).for_each(|_| limiter.record(&call()));
    let started = Instant::now();
    let refused = limiter.reserve(&call().with_max_wait(Duration::from_secs(30))).await.unwrap_err();
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert!(refused.retry_after().unwrap() > Duration::from_secs(59));
    let said = refused.to_string();
    assert!(said.contains("requests per min (RPM): Limit 10, Used 10, Requested 1"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn what_can_never_fit_is_told_with_the_numbers() {
    let refused = limiter().reserve(&call().with_estimated_tokens(1001)).await.unwrap_err();
    let Error::TooLarge { limit, .. } = refused else { panic!("{refused}") };
    assert_eq!((limit.allowed, limit.requested), (1000, 1001));
    assert_eq!(limiter().wait_time(&call().with_estimated_tokens(1001)), None);
}

#[tokio::test(start_paused = true)]
async fn one_users_limit_holds_up_no_other_user() {
    let limiter = RateLimiter::new(RateLimitConfig::default().with_requests_per_minute(1));
    let (anna, bert) = (call().with_user("anna"), call().with_user("bert"));
    use_up(&limiter, &anna, 0).await;
    let waits = tokio::spawn({
        let (limiter, anna) = (limiter.clone(), anna.clone());
        async move { limiter.reserve(&anna).await.map(drop_sent) }
    });
    tokio::task::yield_now().await;
    assert!(limiter.try_reserve(&bert).is_ok());
    waits.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_those_that_wait_the_urgent_go_first() {
    let limiter = RateLimiter::new(RateLimitConfig::default().per([]).with(Dimension::MaxInFlight, 1));
    let held = limiter.reserve(&call()).await.unwrap();
    let (sender, mut went) = tokio::sync::mpsc::unbounded_channel();
    for priority in [Priority::Low, Priority::High] {
        let (limiter, sender) = (limiter.clone(), sender.clone());
        let waiting = limiter.clone();
        tokio::spawn(async move {
            let reservation = waiting.reserve(&call().with_priority(priority)).await.unwrap();
            sender.send(priority).unwrap();
            drop(reservation);
        });
        tokio::task::yield_now().await;
    }
    drop(held);
    assert_eq!(went.recv().await, Some(Priority::High));
    assert_eq!(went.recv().await, Some(Priority::Low));
}

#[tokio::test(start_paused = true)]
async fn a_large_call_is_not_passed_for_ever_by_small_ones() {
    let limiter = tokens_only(1000);
    use_up(&limiter, &call().with_estimated_tokens(1000), 1000).await;
    let large = tokio::spawn({
        let limiter = limiter.clone();
        async move { limiter.reserve(&call().with_estimated_tokens(1000)).await.map(drop_sent) }
    });
    tokio::task::yield_now().await;
    let small = call().with_estimated_tokens(10).with_max_wait(Duration::ZERO);
    for _ in 0..130 {
        advance(Duration::from_secs(1)).await;
        let _ = limiter.reserve(&small).await.map(drop_sent);
    }
    assert!(large.is_finished());
    large.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn models_have_levels_and_numbers_of_their_own() {
    let config =
        RateLimitConfig::default().with_requests_per_minute(1).with_model("gpt-4o*", Dimension::RequestsPerMinute, 3);
    let limiter = RateLimiter::new(config);
    use_up(&limiter, &Call::new("o1"), 0).await;
    assert!(!limiter.check(&Call::new("o1")).allowed);
    assert_eq!(limiter.check(&Call::new("gpt-4o-mini")).remaining_requests, Some(3));
    use_up(&limiter, &Call::new("gpt-4o-2024-08-06"), 0).await;
    assert_eq!(limiter.check(&Call::new("gpt-4o")).remaining_requests, Some(2), "a dated snapshot is its family");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_limited_by_default_and_a_paid_account_as_its_numbers_say() {
    let limiter = RateLimiter::new(RateLimitConfig::default());
    let checked = limiter.check(&call().with_estimated_tokens(u64::MAX / 2));
    assert_eq!((checked.allowed, checked.remaining_requests), (true, None));
    let info = RateLimiter::new(RateLimitConfig::openai_paid()).info();
    assert_eq!(info.requests_per_minute, Some(3500));
    assert_eq!(info.tokens_per_minute, Some(90_000));
    assert_eq!(info.requests_per_day, Some(10_000));
}

#[tokio::test(start_paused = true)]
async fn a_burst_bounds_what_goes_at_one_instant() {
    let limiter = RateLimiter::new(RateLimitConfig::openai_paid());
    for _ in 0..10 {
        limiter.try_reserve(&call()).unwrap().settle(Usage::default());
    }
    let wait = limiter.try_reserve(&call()).unwrap_err().retry_after().unwrap();
    assert!(wait <= Duration::from_micros(17_143), "a 3500th of a minute: {wait:?}");
    advance(wait).await;
    assert!(limiter.try_reserve(&call()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_day_is_counted_apart_from_a_minute() {
    let limiter = RateLimiter::new(RateLimitConfig::default().with_requests_per_day(2));
    (0..2).for_each(|_| limiter.record(&call()));
    advance(Duration::from_secs(3600)).await;
    let wait = limiter.wait_time(&call()).unwrap();
    assert!(wait > Duration::from_secs(22 * 3600) && wait <= Duration::from_secs(24 * 3600), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn info_counts_what_all_used_and_a_reset_forgets_it() {
    let limiter = limiter();
    for user in ["anna", "bert", "bert"] {
        use_up(&limiter, &call().with_user(user).with_estimated_tokens(50), 70).await;
    }
    let info = limiter.info();
    assert_eq!((info.requests_per_minute, info.requests_in_last_minute), (Some(10), 3));
    assert_eq!((info.tokens_per_minute, info.tokens_in_last_minute), (Some(1000), 210));
    assert_eq!((info.requests_per_day, info.requests_today), (Some(100), 3));
    assert!(info.next_reset_at > SystemTime::now() + Duration::from_secs(23 * 3600));
    limiter.reset();
    let info = limiter.info();
    assert_eq!((info.requests_in_last_minute, info.tokens_in_last_minute, info.requests_today), (0, 0, 0));
    assert!(limiter.check(&call().with_user("bert").with_estimated_tokens(1000)).allowed);
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_holds_nothing_back() {
    let limiter = RateLimiter::new(RateLimitConfig::default().with_requests_per_minute(1).in_shadow_mode());
    for _ in 0..5 {
        assert!(limiter.try_reserve(&call()).is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn events_tell_what_was_used_and_what_was_refused() {
    let limiter = limiter();
    let mut events = limiter.subscribe();
    let call = call().with_user("anna").with_organization("acme").with_estimated_tokens(600);
    use_up(&limiter, &call, 700).await;
    limiter.try_reserve(&call).unwrap_err();
    limiter.record(&call);
    limiter.reset();
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        told.push(match &*event {
            Event::UsageRecorded { user: Some(user), organization: Some(organization), requests, tokens, .. } => {
                format!("{organization}/{user} used {requests} and {tokens}")
            }
            Event::Settled { reserved, charged, .. } => format!("settled {reserved} as {charged}"),
            Event::Refused { reason, .. } => format!("refused for {reason}"),
            Event::LimitsReset => "reset".to_owned(),
            _ => continue,
        });
    }
    let expected =
        ["acme/anna used 1 and 700", "settled 600 as 700", "refused for limit", "acme/anna used 1 and 600", "reset"];
    assert_eq!(told, expected);
}

#[tokio::test(start_paused = true)]
async fn levels_of_users_that_are_gone_are_forgotten_and_that_is_told() {
    let limiter = RateLimiter::new(RateLimitConfig::default().with_requests_per_minute(10));
    for user in 0..1000 {
        limiter.record(&call().with_user(user.to_string()));
    }
    let mut events = limiter.subscribe();
    advance(Duration::from_secs(300)).await;
    let mut removed = 0;
    for _ in 0..1200 {
        limiter.record(&call().with_user("one"));
        while let Ok(event) = events.try_recv() {
            if let Event::RecordsCleaned { removed: so_many } = &*event {
                removed += so_many;
            }
        }
    }
    assert_eq!(removed, 1000);
}

#[tokio::test(start_paused = true)]
async fn whatever_a_limit_can_be_per_a_call_can_say() {
    type Say = fn(Call, &str) -> Call;
    let scopes: [(&str, Say); 5] = [
        ("account", |call, name| call.with_account(name)),
        ("key", |call, name| call.with_key(name)),
        ("organization", |call, name| call.with_organization(name)),
        ("project", |call, name| call.with_project(name)),
        ("user", |call, name| call.with_user(name)),
    ];
    for (scope, say) in scopes {
        let limit = serde_json::json!({ "per": [scope], "images_per_minute": 2 });
        let limiter = RateLimiter::new(serde_json::from_value(limit).unwrap());
        let call = |name| say(Call::new("gpt-image-1").with_images(2), name);
        limiter.try_reserve(&call("a")).unwrap().settle(Usage::new(0, 0));
        assert!(limiter.try_reserve(&call("a")).is_err(), "{scope}");
        assert!(limiter.try_reserve(&call("b")).is_ok(), "{scope}");
    }
}

#[test]
fn a_call_tells_what_it_was_told() {
    let call = Call::new("gpt-4o-2024-08-06").with_user("anna").with_organization("acme").with_tokens(1200, 300);
    assert_eq!((call.model(), call.user(), call.organization()), ("gpt-4o", Some("anna"), Some("acme")));
    assert_eq!((call.tokens(), call.with_estimated_tokens(2000).tokens()), (1500, 2000));
}

#[tokio::test(start_paused = true)]
async fn who_could_not_go_in_time_behind_those_that_wait_is_told_at_once() {
    let limiter = RateLimiter::new(RateLimitConfig::default().with_requests_per_minute(120).with_burst_allowance(1));
    let call = Call::new("gpt-4o").with_max_wait(Duration::from_secs(2));
    let started = Instant::now();
    let asking: Vec<_> = (0..10)
        .map(|_| (limiter.clone(), call.clone()))
        .map(|(limiter, call)| {
            tokio::spawn(async move {
                let reserved = limiter.reserve(&call).await.map(|reserved| reserved.settle(Usage::new(0, 0)));
                (reserved, started.elapsed())
            })
        })
        .collect();
    let mut served = Vec::new();
    for asked in asking {
        match asked.await.unwrap() {
            (Ok(()), after) => served.push(after.as_millis()),
            (Err(refused), after) => {
                assert_eq!(after, Duration::ZERO, "{refused}");
                assert_eq!(refused.retry_after(), Some(Duration::from_millis(2500)), "{refused}");
            }
        }
    }
    assert_eq!(served.len(), 5, "{served:?}");
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_nothing_does_not_ask_for_less() {
    let limiter = RateLimiter::new(RateLimitConfig::default().with_requests_per_minute(0));
    let told = limiter.reserve(&call()).await.unwrap_err().to_string();
    assert!(told.ends_with("allows nothing on requests per min (RPM): Limit 0; waiting cannot help"), "{told}");
}
